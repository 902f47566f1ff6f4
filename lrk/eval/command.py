"""The `lrk-eval` command."""

import sys
from collections.abc import Sequence

from lrk.atomic import SaveError
from lrk.eval.dry_run import dry_run
from lrk.eval.evaluation import load, run, set_up
from lrk.eval.parser import parse


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-eval [CONFIG.yaml] [--KEY VALUE ...]`.

    Returns 2 after a sentence on bad input, 1 after a sentence on results that cannot be saved.
    """
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        evaluation = set_up(arguments)
        if arguments.dry_run:
            print(dry_run(evaluation))
            return 0
        model = load(evaluation)
    except ValueError as error:
        print(f"lrk-eval: {error}", file=sys.stderr)
        return 2
    try:
        run(evaluation, model)
    except SaveError as error:
        print(f"lrk-eval: {error}", file=sys.stderr)
        return 1
    print((evaluation.folder.path / "results.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
