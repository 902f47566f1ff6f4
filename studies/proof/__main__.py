"""Does it really extend the context? A study from nothing to a verdict, on a laptop.

    make proof
    python -m studies.proof [--decoding] [--seeds 4] [--output_dir outputs/proof]
    python -m studies.proof --rope_scaling --seeds 3

A tiny Llama learns, within 128 tokens, to quote and to tell the latest value of variables. It is
then extended to 1,024 by each method at the same number of training tokens, with as many seeds as
asked for, and asked from 128 to 2,048 tokens, in ordinary positions. Runs that are already in the
results file are not repeated.

The third line compares the ways to stretch RoPE instead, without training and with PoSE's; the
factors of LongRoPE are searched first.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from studies.proof.factors import find_factors
from studies.proof.methods import (
    COMPARED,
    DECODING,
    OTHERS,
    PAIRS,
    ROPE,
    Method,
)
from studies.proof.report import differences, draw, search_table, table, verdict
from studies.proof.study import LENGTHS, base_model, missing, read, results, write
from studies.proof.task import TASKS

BASE = 1
"""Not the pretrained model with which `studies.proof.selection` chooses."""
SEEDS_OF_OTHERS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4, help="of the methods that are compared")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/proof"))
    parser.add_argument("--decoding", action="store_true", help="also methods that train nothing")
    parser.add_argument(
        "--rope_scaling", action="store_true", help="compare ways to stretch RoPE instead"
    )
    arguments = parser.parse_args()
    if not 2 <= arguments.seeds <= 10:
        parser.error(f"--seeds is {arguments.seeds}; it must be from 2, for intervals, to 10")
    if arguments.rope_scaling and arguments.decoding:
        parser.error("--rope_scaling is a study of its own; leave out --decoding")
    if arguments.processes < 1:
        parser.error(f"--processes is {arguments.processes}; it must be at least 1")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # The order of sums, and so the result, depends on their number.
    begin = time.perf_counter()
    base = base_model(arguments.output_dir, BASE)
    study = _rope_scaling if arguments.rope_scaling else _methods
    text = study(arguments, base)
    print(f"{text}\n\n{time.perf_counter() - begin:.0f} s, {arguments.processes} processes")


def _methods(arguments: argparse.Namespace, base: Path) -> str:
    """Tables of all methods, and the verdict on those that are compared."""
    file = arguments.output_dir / "results.json"
    others = OTHERS + (DECODING if arguments.decoding else ())
    few = min(arguments.seeds, SEEDS_OF_OTHERS)
    _run(arguments, base, file, COMPARED, arguments.seeds)
    rows = _run(arguments, base, file, others, few)
    found = differences(rows, PAIRS, [str(length) for length in LENGTHS[-2:]])
    parts = [*(f"{task}\n\n{table(rows, task)}" for task in TASKS), verdict(found)]
    text = "\n\n".join(parts)
    (arguments.output_dir / "table.md").write_text(text + "\n")
    draw(rows, arguments.output_dir / "proof.png")
    return text


def _rope_scaling(arguments: argparse.Namespace, base: Path) -> str:
    factors = json.loads(find_factors(base).read_text())
    file = arguments.output_dir / "rope_scaling.json"
    rows = _run(arguments, base, file, ROPE, arguments.seeds)
    text = "\n\n".join([*(table(rows, task) for task in TASKS), search_table(factors)])
    (arguments.output_dir / "rope_scaling.md").write_text(text + "\n")
    return text


def _run(
    arguments: argparse.Namespace, base: Path, file: Path, methods: tuple[Method, ...], seeds: int
) -> list[dict]:
    """The rows of the file, which then has the runs of these methods too, in their order."""
    rows = read(file)
    runs = missing(rows, methods, range(seeds), base)
    for row in results(base, runs, arguments.processes):
        rows.append(row)
        write(rows, file)
    shown = [method.name for method in (*COMPARED, *OTHERS, *DECODING, *ROPE)]
    return sorted(rows, key=lambda row: (shown.index(row["method"]), row["seed"]))


if __name__ == "__main__":
    main()
