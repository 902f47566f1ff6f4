"""How much of the tensor cores attention's main loops can use at best, from their machine code.

    python -m bench.compile_report --op attention --json report.json
    python -m bench.bounds report.json

One trip of the loop needs so many clocks of each of a multiprocessor's units: tensor cores, the
four issue slots, and the special-function units that compute exp2. If all overlap perfectly, the
longest decides: `bound = tensor / longest`. Memory, latency and barriers are left out, so it is an
upper bound from compiled code, and not a timing.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple


class Throughput(NamedTuple):
    """Per clock and multiprocessor [published by NVIDIA]."""

    flop: int  # dense bf16 or fp16
    exp2: int
    issues: int  # warp instructions


THROUGHPUT = {
    "sm_80": Throughput(2048, 16, 4),
    "sm_90": Throughput(4096, 16, 4),
    "sm_100": Throughput(8192, 16, 4),
}

# Products of (M, N, D) tiles in one trip, by what the kernel is for. fla's names and ours.
PRODUCTS = {
    "_attention_forward": 2,
    "_attention_query_gradient": 3,
    "_attention_key_gradient": 4,
    "parallel_attn_fwd_kernel": 2,
    "parallel_attn_bwd_kernel_dq": 3,
    "parallel_attn_bwd_kernel_dkv": 4,
}


def clocks(row: dict[str, Any]) -> dict[str, float]:
    """Clocks of one trip of a report row's main loop on each unit."""
    unit = THROUGHPUT[row["arch"]]
    block_m, block_n = map(int, row["tile"].split("x"))
    padded_dim = max(16, 1 << (row["head_dim"] - 1).bit_length())
    warps = row["num_warps"]
    return {
        "tensor": 2 * PRODUCTS[row["kernel"]] * block_m * block_n * padded_dim / unit.flop,
        "issue": row["loop_instructions"] * warps / unit.issues,
        "exp2": row["loop_exp2"] * warps * 32 / unit.exp2,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a kernel."""
    lines = [
        "| model | arch | provider | kernel | tile | registers | stack | blocks per SM | tensor "
        "| issue | exp2 | bound |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["kernel"] not in PRODUCTS or row["arch"] not in THROUGHPUT:
            continue
        units = clocks(row)
        bound = units["tensor"] / max(units.values())
        cells = [row[key] for key in ("model", "arch", "provider", "kernel", "tile", "registers")]
        cells += [row["stack_bytes"], row["blocks_per_sm"]]
        cells += [f"{units[name]:,.0f}" for name in ("tensor", "issue", "exp2")]
        lines.append("| " + " | ".join(map(str, [*cells, f"{bound:.0%}"])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("report", type=Path, help="JSON of bench.compile_report")
    print(table(json.loads(parser.parse_args().report.read_text())))


if __name__ == "__main__":
    main()
