"""The `lrk-eval` command."""

import sys
from collections.abc import Sequence

from lrk.command import run_command
from lrk.eval.dry_run import dry_run
from lrk.eval.evaluation import Evaluation, load, run, set_up
from lrk.eval.parser import parse
from lrk.share import process_share

_GO_ON = "run it again to go on: finished cells are not repeated"


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-eval [CONFIG.yaml] [--KEY VALUE ...]`.

    Returns the status of `lrk.command.run_command`.
    """
    words = sys.argv[1:] if argv is None else argv
    return run_command("lrk-eval", lambda: _evaluate(words), _GO_ON)


def _evaluate(words: Sequence[str]) -> int:
    arguments = parse(words)
    evaluation = set_up(arguments)
    if arguments.dry_run:
        if process_share().index == 0:
            print(dry_run(evaluation))
        return 0
    if not evaluation.own_cells or run(evaluation, load(evaluation)) is None:
        print(_without_results(evaluation))
    else:
        print((evaluation.folder.path / "results.md").read_text(encoding="utf-8"))
    return 0


def _without_results(evaluation: Evaluation) -> str:
    """What to say where this process does not write the results."""
    missing = len(evaluation.unfinished(evaluation.cells))
    there, writer = "all cells are there", "the job that finished the last one"
    if missing:
        own = f"the {len(evaluation.own_cells)} cells of {evaluation.arguments.share}"
        there = f"{own} are there, {missing} of others are missing"
        writer = "the job that finds all"
    return (
        f"{evaluation.folder.path}: {there}: {writer} writes the results, or the same command "
        "without shard does"
    )


if __name__ == "__main__":
    sys.exit(main())
