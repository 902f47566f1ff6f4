"""Compile the attention kernels for GPUs that need not be there; prints JSON for test_compile.py.

    python -m tests.kernels.attention.compile_rows [--all]

In a process of its own, since Triton either interprets or compiles. With --all every variant is
compiled for every architecture, which takes several minutes; without, sm_90 alone has them all.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.compile_report import PROCESSORS, blocks_per_sm
from bench.machine_code import read
from bench.offline import TARGETS, compiled_launches
from lrk.kernels.attention import backward, forward
from lrk.kernels.attention.mask import Mask

HEADS, KV_HEADS, LENGTH = 32, 8, 4096
CAUSAL = Mask(None, None, None, None, None, causal=True, q_offset=0, window=None)
ENDS = torch.tensor([0, 1000, 1000, 4096], dtype=torch.int32)
VARIANTS: dict[str, tuple[Mask, float | None]] = {
    "causal": (CAUSAL, None),
    "full": (CAUSAL._replace(causal=False), None),
    "documents": (CAUSAL._replace(cu_seqlens=ENDS, cu_seqlens_k=ENDS), None),
    "window": (CAUSAL._replace(window=1024), None),
    "positions": (
        CAUSAL._replace(window=1024, window_position_ids=torch.arange(LENGTH)[None]),
        None,
    ),
    "softcap": (CAUSAL, 30.0),
}


def configurations(everywhere: bool) -> Iterator[tuple[str, int, torch.dtype, str]]:
    """(architecture, head dimension, dtype, variant)"""
    for arch in TARGETS:
        for head_dim in (64, 128):
            yield arch, head_dim, torch.bfloat16, "causal"
        if arch != "sm_90" and not everywhere:
            continue
        for head_dim in (64, 128):
            yield arch, head_dim, torch.float16, "causal"
        for variant in VARIANTS:
            if variant != "causal":
                yield arch, 128, torch.bfloat16, variant
        for head_dim in (96, 256):
            yield arch, head_dim, torch.bfloat16, "causal"
        yield arch, 128, torch.float32, "causal"


def figures(arch: str, head_dim: int, dtype: torch.dtype, variant: str) -> Iterator[dict[str, Any]]:
    mask, softcap = VARIANTS[variant]
    q, k, v = (
        torch.empty(1, LENGTH, heads, head_dim, dtype=dtype).transpose(1, 2)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    lse = torch.empty(1, HEADS, LENGTH)

    def launch() -> None:
        forward.launch(q, k, v, mask, 0.1, softcap)
        backward.launch(q, lse, q, k, v, q, lse, mask, 0.1, softcap)

    case = f"{arch} {head_dim} {str(dtype).removeprefix('torch.')} {variant}"
    yield from rows_of(case, launch, arch)


def rows_of(case: str, launch: Callable[[], None], arch: str) -> Iterator[dict[str, Any]]:
    """What each kernel that is launched compiles to."""
    for compiled in compiled_launches(launch, arch):
        code = read(compiled.compiled, arch)
        arguments = compiled.arguments
        yield {
            "case": case,
            "kernel": compiled.kernel,
            "tile": [arguments.get(name) for name in ("BLOCK_M", "BLOCK_N")],
            "num_warps": code.num_warps,
            "num_stages": code.num_stages,
            "blocks_per_sm": blocks_per_sm(code) if arch in PROCESSORS else None,
            "registers": code.registers,
            "stack_bytes": code.stack_bytes,
            "spill_bytes": code.spill_bytes,
            "shared_bytes": code.shared_bytes,
            "tensor_core": code.count(code.tensor_core),
            "hgmma": sum(op.startswith("HGMMA") for op in code.instructions),
            "tma": sum(op.startswith("UTMALDG") for op in code.instructions),
            "traps": sum(op.startswith("BPT.TRAP") for op in code.instructions),
            "instructions": len(code.instructions),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="every variant on every architecture")
    everywhere = parser.parse_args().all
    rows = [row for which in configurations(everywhere) for row in figures(*which)]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
