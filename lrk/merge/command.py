"""The `lrk-merge` command."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lrk.command import run_command
from lrk.merge.rules import Linear, Rule, Slerp, TaskArithmetic
from lrk.merge.stream import merge


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-merge {linear,slerp,task_arithmetic} MODEL MODEL ... --output_dir FOLDER`.

    Returns the status of `lrk.command.run_command`.
    """
    arguments = _parser().parse_args(argv)
    return run_command("lrk-merge", lambda: _merge(arguments), "nothing was written")


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lrk-merge", description="Merge models of one architecture, block by block."
    )
    rules = parser.add_subparsers(dest="rule", required=True)
    linear = _add_rule(rules, "linear", "weighted mean; LongRecipe takes 0.5 and 0.5")
    linear.add_argument("--weights", type=float, nargs="+", help="one a model (default: all equal)")
    slerp = _add_rule(rules, "slerp", "along the arc between 2 models")
    slerp.add_argument("--t", type=float, default=0.5, help="0 is the first model, 1 the second")
    tasks = _add_rule(rules, "task_arithmetic", "a base plus what each model learnt since")
    tasks.add_argument("--base", type=Path, required=True, help="what the models were trained from")
    tasks.add_argument("--weights", type=float, nargs="+", help="one a model (default: 1)")
    return parser


def _add_rule(rules: argparse._SubParsersAction, name: str, help: str) -> argparse.ArgumentParser:
    parser = rules.add_parser(name, help=help, description=help, allow_abbrev=False)
    parser.add_argument("models", type=Path, nargs="+", help="folders with safetensors files")
    parser.add_argument(
        "--output_dir", "--output-dir", type=Path, required=True, help="a new folder"
    )
    parser.add_argument(
        "--config_from",
        "--config-from",
        type=Path,
        help="the model whose configuration, tokenizer, dtypes and files the result has "
        "(default: the first, for task_arithmetic the base)",
    )
    return parser
