"""The command `lrk-data analyze`."""

from argparse import ArgumentParser, Namespace
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin, get_type_hints

from transformers.hf_argparser import string_to_bool

from lrk.analysis.analysis import analyze
from lrk.analysis.arguments import AnalysisArguments
from lrk.command import run_command

# The first of each subject's arguments, which follow one another.
_SUBJECTS = {
    "model": "models and documents",
    "length": "samples",
    "top_share": "what counts",
    "extend_steps": "a brief extension",
    "dtype": "run",
}


def add_arguments(parser: ArgumentParser) -> None:
    """One option for each of `AnalysisArguments`."""
    hints = get_type_hints(AnalysisArguments)
    for item in fields(AnalysisArguments):
        if item.name in _SUBJECTS:
            group = parser.add_argument_group(_SUBJECTS[item.name])
        hint = hints[item.name]
        kind = next((part for part in get_args(hint) if part is not type(None)), hint)
        default = item.default if item.default is not MISSING else []
        text = item.metadata["help"]
        if default not in ("", None, []) and default is not False:
            text += f" (default: {default})"
        options: dict[str, Any] = {"type": kind}
        if get_origin(hint) is list:
            options = {"nargs": "+", "type": str}
        elif kind is bool:
            options = {"type": string_to_bool, "nargs": "?", "const": True}
        required = item.name in ("model", "data", "output_dir")
        group.add_argument(
            f"--{item.name}", default=default, required=required,
            help=text.replace("%", "%%"), **options,
        )  # fmt: skip


def run(namespace: Namespace) -> int:
    """Analyze, and print what was found; the status of `lrk.command.run_command`."""
    given = {item.name: getattr(namespace, item.name) for item in fields(AnalysisArguments)}

    def report() -> int:
        print(analyze(AnalysisArguments(**given)).report())
        return 0

    return run_command("lrk-data analyze", report, "run it again to go on where it was")
