"""The `lrk-merge` command."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lrk.command import run_command
from lrk.command_line import CommandParser, add_answers, looks, underscored
from lrk.merge.rules import Linear, Rule, Slerp, TaskArithmetic
from lrk.merge.stream import merge

_MEAN = (
    "the mean of a model and its extension",
    "lrk-merge linear original extended --config_from extended --output_dir merged",
)
LOOKS = looks(
    "Merge models of one architecture, tensor by tensor, in the memory of two tensors.\n"
    "'lrk-merge RULE --help' has the options of a rule.",
    [_MEAN],
    epilog="docs/merge.md says what each rule is for.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-merge {linear,slerp,task_arithmetic} MODEL MODEL ... --output_dir FOLDER`.

    Returns the status of `lrk.command.run_command`.
    """
    words = [underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    return run_command(
        "lrk-merge", lambda: _merge(parser().parse_args(words)), "nothing was written"
    )


def _merge(arguments: argparse.Namespace) -> int:
    models, rule = _models_and_rule(arguments)
    print(merge(models, arguments.output_dir, rule, arguments.config_from))
    return 0


def _models_and_rule(arguments: argparse.Namespace) -> tuple[list[Path], Rule]:
    if arguments.rule == "slerp":
        return arguments.models, Slerp(arguments.t)
    if arguments.rule == "linear":
        return arguments.models, Linear(arguments.weights)
    return [arguments.base, *arguments.models], TaskArithmetic(arguments.weights)


def parser() -> CommandParser:
    """The parser of all rules."""
    parser = CommandParser(prog="lrk-merge", usage="lrk-merge RULE MODEL ... --KEY VALUE", **LOOKS)
    add_answers(parser)
    rules = parser.add_subparsers(title="rules", dest="rule", required=True, metavar="RULE")
    linear = _add_rule(
        rules,
        "linear",
        "take the weighted mean; LongRecipe's weights are 0.5 and 0.5",
        [_MEAN, ("three quarters of it extended", f"{_MEAN[1]} \\\n      --weights 0.25 0.75")],
    )
    linear("--weights", type=float, nargs="+", help="one a model (default: all equal)")
    slerp = _add_rule(
        rules,
        "slerp",
        "go along the arc between 2 models",
        [
            (
                "three quarters of the way to the second",
                "lrk-merge slerp original extended --t 0.75 --output_dir merged",
            )
        ],
    )
    slerp("--t", type=float, default=0.5, help="0 is the first, 1 the second (default: 0.5)")
    tasks = _add_rule(
        rules,
        "task_arithmetic",
        "add to a base what each model learnt since",
        [
            (
                "all that an extended and half of what another one learnt",
                "lrk-merge task_arithmetic extended other --base original \\\n"
                "      --weights 1 0.5 --output_dir merged",
            )
        ],
    )
    tasks("--base", type=Path, required=True, help="what the models were trained from")
    tasks("--weights", type=float, nargs="+", help="one a model (default: 1)")
    return parser


def _add_rule(
    rules: "argparse._SubParsersAction[CommandParser]",
    name: str,
    what: str,
    examples: list[tuple[str, str]],
) -> Callable[..., argparse.Action]:
    """A rule with what all of them need; returns what adds an option to it."""
    parser = rules.add_parser(
        name,
        help=what,
        prog=f"lrk-merge {name}",
        usage=f"lrk-merge {name} MODEL ... --KEY VALUE ...",
        **looks(f"{what[0].upper()}{what[1:]}.", examples),
    )
    add_answers(parser)
    add = parser.add_argument_group("merge").add_argument
    add("models", type=Path, nargs="+", metavar="MODEL", help="folders with safetensors")
    add("--output_dir", type=Path, required=True, help="a new folder")
    add(
        "--config_from",
        type=Path,
        help="the model whose configuration, tokenizer, dtypes and files the result has "
        "(default: the first, for task_arithmetic the base)",
    )
    return add
