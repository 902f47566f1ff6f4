"""The `lrk-train` command."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrk.command import run_command
from lrk.command_line import underscored
from lrk.train.presets import answer, what_to_type

if TYPE_CHECKING:
    from lrk.train.stages import StagedRun

# All else is imported under `run_command`, which keeps what others say at import off stderr.
_GO_ON = "the same command with --resume_from_checkpoint auto goes on from the last checkpoint"


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-train CONFIG.yaml [--KEY VALUE ...]`, or `lrk-train --recipe auto [--KEY VALUE ...]`.

    Returns 2 after a sentence on bad input, 1 after a sentence on a run that cannot go on, 128 and
    the number of the signal after an interruption.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words:
        print(what_to_type(), file=sys.stderr)
        return 2
    return run_command("lrk-train", lambda: _run(words), _GO_ON)


def _run(words: Sequence[str]) -> int:
    if (answered := answer([underscored(word) for word in words])) is not None:
        print(answered)
        return 0
    from lrk.train.auto_recipe.command import asks_for_recipe, write_recipe
    from lrk.train.stages import parse_stages

    if asks_for_recipe(words):
        print(write_recipe(words))
        return 0
    staged = parse_stages(words)
    if staged is None:
        _run_once(words)
    else:
        _run_stages(staged)
    return 0


def _run_once(words: Sequence[str]) -> None:
    from lrk.train.dry_run import dry_run
    from lrk.train.parser import parse
    from lrk.train.session import train

    arguments = parse(words)
    if arguments.dry_run:
        described = dry_run(arguments)
        if arguments.process_index == 0:
            print(described)
    else:
        train(arguments)


def _run_stages(staged: "StagedRun") -> None:
    from accelerate import PartialState

    from lrk.train.staged_run import dry_run_stages, run_stages

    if staged.dry_run:
        described = dry_run_stages(staged)
        if PartialState().is_main_process:
            print(described)
        return
    table = run_stages(staged)
    if PartialState().is_main_process:
        print(table, end="")


if __name__ == "__main__":
    sys.exit(main())
