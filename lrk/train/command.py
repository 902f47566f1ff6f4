"""The `lrk-train` command."""

import sys
from collections.abc import Sequence

from lrk.train.atomic import SaveError
from lrk.train.dry_run import dry_run
from lrk.train.finite import NotFiniteError
from lrk.train.parser import parse
from lrk.train.session import run, set_up


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-train CONFIG.yaml [--KEY VALUE ...]`.

    Returns 2 after a sentence on bad input, 1 after a sentence on a run that cannot go on.
    """
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        if arguments.dry_run:
            print(dry_run(arguments))
            return 0
        trainer = set_up(arguments)
    except ValueError as error:
        print(f"lrk-train: {error}", file=sys.stderr)
        return 2
    try:
        run(trainer)
    except (SaveError, NotFiniteError) as error:
        print(f"lrk-train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
