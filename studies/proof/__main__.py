"""Does it really extend the context? A study from nothing to a verdict, on a laptop.

    make proof
    python -m studies.proof [--ablation] [--decoding] [--seeds 5] [--output_dir outputs/proof]
    python -m studies.proof --rope_scaling --seeds 3

A tiny Llama learns to quote within 128 tokens. It is then extended to 1,024 by each method at the
same number of training tokens, with as many seeds as asked for, and has to quote from 128 to 2,048
tokens, in ordinary positions. Runs that are already in the results file are not repeated.

The second line compares the ways to stretch RoPE instead, without training and with PoSE's; the
factors of LongRoPE are searched first.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from studies.proof.factors import find_factors
from studies.proof.methods import ABLATION, DECODING, METHODS, ROPE
from studies.proof.report import draw, search_table, table, verdict
from studies.proof.study import base_model, missing, read, results, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/proof"))
    parser.add_argument("--ablation", action="store_true", help="also take the best method apart")
    parser.add_argument("--decoding", action="store_true", help="also methods that train nothing")
    parser.add_argument(
        "--rope_scaling", action="store_true", help="compare ways to stretch RoPE instead"
    )
    arguments = parser.parse_args()
    if not 2 <= arguments.seeds <= 10:
        parser.error(f"--seeds is {arguments.seeds}; it must be from 2, for intervals, to 10")
    if arguments.rope_scaling and (arguments.ablation or arguments.decoding):
        parser.error("--rope_scaling is a study of its own; leave out --ablation and --decoding")
    if arguments.processes < 1:
        parser.error(f"--processes is {arguments.processes}; it must be at least 1")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    file = arguments.output_dir / "results.json"
    rows = read(file)
    torch.set_num_threads(1)  # The order of sums, and so the result, depends on their number.
    begin = time.perf_counter()
    base = base_model(arguments.output_dir / "base")
    methods = METHODS
    methods += ABLATION if arguments.ablation else ()
    methods += DECODING if arguments.decoding else ()
    shown = METHODS + ABLATION + DECODING
    if arguments.rope_scaling:
        methods = shown = ROPE
        factors = json.loads(find_factors(base).read_text())
    for row in results(base, missing(rows, methods, arguments.seeds), arguments.processes):
        rows.append(row)
        write(rows, file)
    rows = [row for method in shown for row in rows if row["method"] == method.name]
    if arguments.rope_scaling:
        text = table(rows) + "\n\n" + search_table(factors)
        (arguments.output_dir / "rope_scaling.md").write_text(text + "\n")
    else:
        text = table(rows) + "\n\n" + verdict(rows)
        (arguments.output_dir / "table.md").write_text(text + "\n")
        draw(rows, arguments.output_dir / "proof.png")
    print(f"{text}\n\n{time.perf_counter() - begin:.0f} s, {arguments.processes} processes")


if __name__ == "__main__":
    main()
