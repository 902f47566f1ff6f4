"""How reach and temperature are chosen: by quotes, on a pretrained model and seeds of their own.

    python -m studies.proof.selection [--processes 2] [--output_dir outputs/proof]

Each candidate of GRID extends the model with PoSE. What is best by the mean of quotes at the target
and at twice that is what `studies.proof.methods` has as REACH and POWER; everything else in the
study (variables, the other pretrained model, the other seeds, real text) has no part in the choice.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch

from studies.proof.methods import GRID, TARGET
from studies.proof.study import base_model, missing, read, results, write

BASE, SEEDS = 0, range(100, 102)
TASK = "quotes"


def scores(rows: list[dict]) -> dict[str, float]:
    """Of each candidate, best first: the mean over seeds of TARGET and twice TARGET."""
    found: dict[str, list[float]] = {}
    for row in rows:
        accuracy = row["accuracy"][TASK]
        judged = mean(accuracy[str(length)] for length in (TARGET, 2 * TARGET))
        found.setdefault(row["method"], []).append(judged)
    ordered = sorted(found.items(), key=lambda item: -mean(item[1]))
    return {method: mean(judged) for method, judged in ordered}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/proof"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    file = arguments.output_dir / "selection.json"
    rows = read(file)
    base = base_model(arguments.output_dir, BASE)
    for row in results(base, missing(rows, GRID, SEEDS, base), arguments.processes, [TASK]):
        rows.append(row)
        write(rows, file)
    for method, score in scores(rows).items():
        print(f"{method:24} {100 * score:.1f}")


if __name__ == "__main__":
    main()
