"""The command `lrk-data rope`, also `python -m lrk.longrope`."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import fields

from lrk.command import run_command
from lrk.longrope.arguments import LongRopeArguments
from lrk.longrope.find import find_factors
from lrk.train.parser import underscored


def add_arguments(parser: ArgumentParser) -> None:
    """One option for each of `LongRopeArguments`."""
    defaults = {item.name: item.default for item in fields(LongRopeArguments)}

    def add(name: str, kind: type, help: str) -> None:
        default = defaults[name]
        text = help if default is None else f"{help} (default: {default})"
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)

    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--target_length", type=int, required=True, help="tokens to reach")
    parser.add_argument("--output_dir", required=True, help="folder of the factors and the trials")
    parser.add_argument(
        "--haystack",
        nargs="+",
        default=[],
        help="long texts that hide the needles (default: RULER's repeated sentences)",
    )
    add("samples", int, "texts with a needle; as many more are held out")
    add("population", int, "candidates of an iteration")
    add("iterations", int, "of the evolution")
    add("mutation_probability", float, "of each factor in a mutation")
    add("attention_factor", float, "of cosine and sine (default: sqrt(1 + ln(Lt / L0) / ln(L0)))")
    add("seed", int, "of the needles and the search")
    add("gguf_file", str, "GGUF file in the model's folder; its weights are dequantised")
    add("dtype", str, "of the weights")
    add("device", str, "device (default: the accelerator if there is one)")
    parser.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="delete the search that output_dir holds",
    )


def run(namespace: Namespace) -> int:
    """Search, and print what was found; the status of `lrk.command.run_command`."""
    given = {item.name: getattr(namespace, item.name) for item in fields(LongRopeArguments)}

    def report() -> int:
        print(find_factors(LongRopeArguments(**given)).report())
        return 0

    return run_command("lrk-data rope", report, "run it again to go on where it was")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m lrk.longrope --model H --target_length N --output_dir ...`."""
    parser = ArgumentParser(
        prog="lrk-data rope",
        description="Find RoPE factors by the loss of long needle samples.",
        allow_abbrev=False,
    )
    add_arguments(parser)
    words = sys.argv[1:] if argv is None else argv
    return run(parser.parse_args([underscored(word) for word in words]))
