"""The command `lrk-data rope`."""

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from typing import Any

from lrk.command import run_command
from lrk.longrope.arguments import LongRopeArguments
from lrk.longrope.find import find_factors


def add_arguments(parser: ArgumentParser) -> None:
    """One option for each of `LongRopeArguments`."""
    defaults = {item.name: item.default for item in fields(LongRopeArguments)}
    files = parser.add_argument_group("model and files").add_argument
    search = parser.add_argument_group("search").add_argument

    def default(name: str, kind: type, text: str) -> dict[str, Any]:
        value = defaults[name]
        shown = text if value is None else f"{text} (default: {value})"
        return {"type": kind, "default": value, "help": shown}

    files("--model", required=True, help="folder or hub name")
    files("--gguf_file", **default("gguf_file", str, "GGUF file in it, which is dequantised"))
    files("--dtype", **default("dtype", str, "of the weights"))
    files("--device", help="device (default: the accelerator if there is one)")
    files("--output_dir", required=True, help="folder of the factors and the trials")
    files(
        "--overwrite_output_dir",
        action="store_true",
        help="delete the search that output_dir holds",
    )
    search("--target_length", type=int, required=True, help="tokens to reach")
    search(
        "--haystack",
        nargs="+",
        default=[],
        help="long texts that hide the needles (default: RULER's repeated sentences)",
    )
    for name, kind, text in (
        ("samples", int, "texts with a needle; as many more are held out"),
        ("population", int, "candidates of an iteration"),
        ("iterations", int, "of the evolution"),
        ("mutation_probability", float, "of each factor in a mutation"),
        ("attention_factor", float, "of cosine and sine (default: sqrt(1 + ln(Lt / L0) / ln(L0)))"),
        ("seed", int, "of the needles and the search"),
    ):
        search(f"--{name}", **default(name, kind, text))


def run(namespace: Namespace) -> int:
    """Search, and print what was found; the status of `lrk.command.run_command`."""
    given = {item.name: getattr(namespace, item.name) for item in fields(LongRopeArguments)}

    def report() -> int:
        print(find_factors(LongRopeArguments(**given)).report())
        return 0

    return run_command("lrk-data rope", report, "run it again to go on where it was")
