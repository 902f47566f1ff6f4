"""The `lrk-train` command."""

import sys
from collections.abc import Callable, Sequence
from functools import partial

from accelerate import PartialState

from lrk.atomic import SaveError
from lrk.train.dry_run import dry_run
from lrk.train.finite import NotFiniteError
from lrk.train.parser import parse
from lrk.train.session import run, set_up
from lrk.train.staged_run import StageError, dry_run_stages, run_stages
from lrk.train.stages import StagedRun, parse_stages


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-train CONFIG.yaml [--KEY VALUE ...]`.

    Returns 2 after a sentence on bad input, 1 after a sentence on a run that cannot go on.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        staged = parse_stages(words)
        start = _one_run(words) if staged is None else _all_stages(staged)
    except ValueError as error:
        return _ended(2, error)
    try:
        start()
    except StageError as error:
        return _ended(2, error)
    except (SaveError, NotFiniteError) as error:
        return _ended(1, error)
    return 0


def _one_run(words: Sequence[str]) -> Callable[[], object]:
    """Everything up to the first step, and what is left to do."""
    arguments = parse(words)
    if arguments.dry_run:
        return partial(print, dry_run(arguments))
    return partial(run, set_up(arguments))


def _all_stages(staged: StagedRun) -> Callable[[], object]:
    if staged.dry_run:
        return partial(print, dry_run_stages(staged))
    return partial(_run_stages, staged)


def _run_stages(staged: StagedRun) -> None:
    table = run_stages(staged)
    if PartialState().is_main_process:
        print(table, end="")


def _ended(status: int, error: Exception) -> int:
    print(f"lrk-train: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
