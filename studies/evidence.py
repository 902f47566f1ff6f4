"""The studies' results in the form that `lrk-train --recipe auto` reads.

    python -m studies.evidence

reads the results of three studies as they were committed in `studies/results`, and writes the
file of evidence of `lrk.train.auto_recipe`. Run it when new results are put there: what a rule
chooses may change then.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrk.atomic import write_text
from studies.proof.methods import PAIRS, POWER, REACH, WINDOW
from studies.proof.report import differences, grouped, interval
from studies.real_text.report import evidence as of_real_text

RESULTS = Path(__file__).parent / "results"
FILE = Path(__file__).parents[1] / "lrk" / "train" / "auto_recipe" / "evidence.json"
PROOF, ROPE_SCALING, REAL_TEXT = "proof.json", "rope_scaling.json", "real_text.json"


def main() -> None:
    rows, comparisons = of_proof(_read(PROOF))
    rows |= of_rope_scaling(_read(ROPE_SCALING))
    more_rows, more_comparisons = of_real_text(_read(REAL_TEXT))
    content = {
        "made_by": "python -m studies.evidence",
        "settings": {"reach": float(REACH), "temperature_power": float(POWER)},
        "rows": rows | more_rows,
        "comparisons": comparisons | more_comparisons,
    }
    write_text(FILE, json.dumps(content, indent=1) + "\n")
    print(f"{len(content['rows'])} rows, {len(content['comparisons'])} comparisons")


def of_proof(rows: list[dict]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows of all methods, and the differences of the pairs that are compared."""
    found = dict(_rows(rows))
    lengths = list(rows[0]["accuracy"]["quotes"])[-2:]
    comparisons = {
        f"proof/{task}/{method} minus {of}/{length}": {
            "better": method,
            "worse": of,
            "task": task,
            "length": int(length),
            "difference": round(100 * one.mean, 2),
            "low": round(100 * (one.mean - one.half), 2),
            "high": round(100 * (one.mean + one.half), 2),
            "p": round(one.p, 6),
            "p_corrected": round(one.p_corrected, 6),
        }
        for (method, of, task, length), one in differences(rows, PAIRS, lengths).items()
    }
    return found, comparisons


def of_rope_scaling(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the plans that stretch RoPE, of which the file has means alone."""
    return {
        f"proof/{content['task']}/{row['method']}/{row['length']}": {
            "study": "proof",
            "task": content["task"],
            "times_window": row["length"] / WINDOW,
            **row,
        }
        for row in content["rows"]
    }


def _rows(rows: list[dict]) -> Iterator[tuple[str, dict[str, Any]]]:
    for method, group in grouped(rows).items():
        for task, accuracy in group[0]["accuracy"].items():
            for length in accuracy:
                mean, half = interval([row["accuracy"][task][length] for row in group])
                yield (
                    f"proof/{task}/{method}/{length}",
                    {
                        "study": "proof",
                        "task": task,
                        "method": method,
                        "length": int(length),
                        "times_window": int(length) / WINDOW,
                        "mean": round(100 * mean, 2),
                        "half_interval": round(100 * half, 2),
                        "runs": len(group),
                        "training_tokens": group[0]["training_tokens"],
                        "training_flop": group[0]["training_flop"],
                    },
                )


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m studies.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    main()
