"""The command: `python -m bench.gpu --out DIR [--parts ...] [--budget SECONDS] [--rehearse]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.results import PARTS
from bench.gpu.session import Options, run_part, run_session


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if all that was checked is right, 1 if something is not, 2 after a sentence on bad
    input."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Is every kernel right on this GPU, how fast beside its peers, does the plan "
        "hold?",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[*PARTS], help="default: all, in this order"
    )
    parser.add_argument(
        "--budget", type=float, default=900, metavar="SECONDS", help="of all parts together"
    )
    parser.add_argument("--seed", type=int, help="of the inputs; default: another one every time")
    parser.add_argument("--commit", help="of the sources, where they are not a checkout of git")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run every line on a CPU at tiny sizes; the figures mean nothing",
    )
    # A part is a process of its own, started with these.
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    try:
        options = Options(
            arguments.out,
            tuple(arguments.parts),
            arguments.budget,
            arguments.rehearse,
            arguments.seed,
            arguments.commit,
        )
        if arguments.part is not None:
            return run_part(options, arguments.part, arguments.first, arguments.until)
        return run_session(options)
    except (ValueError, OSError) as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
