"""Compile the kernels of few queries on many keys; prints JSON for test_split_kv_compile.py.

    python -m tests.kernels.attention.compile_split_kv_rows [--all]

In a process of its own, since Triton either interprets or compiles. With --all every variant is
compiled for every architecture, which takes several minutes; without, D 128 alone, and more on
sm_90.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch

from bench.offline import TARGETS
from lrk.kernels.attention import forward
from lrk.kernels.attention.mask import Mask
from tests.kernels.attention.compile_rows import rows_of

KV_HEADS, LENGTH = 8, 4096
SMALL_SHARED_MEMORY = ("sm_86", "sm_120")
CAUSAL = Mask(None, None, None, None, None, causal=True, q_offset=LENGTH - 1, window=None)
# As transformers describes a row of a static cache.
ENDS = torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.int32)
ENDS_K = torch.tensor([0, 0, 100, 3000, LENGTH, LENGTH], dtype=torch.int32)
CACHE = CAUSAL._replace(cu_seqlens=ENDS, cu_seqlens_k=ENDS_K)
VARIANTS: dict[str, tuple[Mask, float | None]] = {
    "dynamic": (CAUSAL, None),
    "static": (CACHE, None),
    "window": (CACHE._replace(window=1024), None),
    "softcap": (CACHE, 30.0),
}
GROUP, LARGEST = 4, {64: 64, 128: 64, 256: 32}


def configurations(everywhere: bool) -> Iterator[tuple[str, int, int, torch.dtype, str]]:
    """(architecture, head dimension, queries of a group, dtype, variant)"""
    for arch in (*TARGETS, *SMALL_SHARED_MEMORY):
        if not everywhere:
            yield arch, 128, GROUP, torch.bfloat16, "static"
            continue
        for head_dim, largest in LARGEST.items():
            for variant in VARIANTS:
                yield arch, head_dim, GROUP, torch.bfloat16, variant
            for queries in (32, 64):
                if queries <= largest:
                    yield arch, head_dim, queries, torch.bfloat16, "static"
            yield arch, head_dim, GROUP, torch.float32, "static"
    if not everywhere:
        for head_dim, largest in LARGEST.items():
            yield "sm_90", head_dim, GROUP, torch.bfloat16, "dynamic"
            yield "sm_90", head_dim, largest, torch.bfloat16, "static"
        yield "sm_90", 128, GROUP, torch.bfloat16, "window"
        yield "sm_90", 128, GROUP, torch.bfloat16, "softcap"
        yield "sm_90", 256, GROUP, torch.float32, "static"


def figures(
    arch: str, head_dim: int, queries: int, dtype: torch.dtype, variant: str
) -> Iterator[dict[str, Any]]:
    mask, softcap = VARIANTS[variant]
    q = torch.empty(1, KV_HEADS * queries, 1, head_dim, dtype=dtype)
    k, v = torch.empty(2, 1, KV_HEADS, LENGTH, head_dim, dtype=dtype)

    def launch() -> None:
        forward.launch(q, k, v, mask, 0.1, softcap)

    name = str(dtype).removeprefix("torch.")
    yield from rows_of(f"{arch} {head_dim} {queries} {name} {variant}", launch, arch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="every variant on every architecture")
    everywhere = parser.parse_args().all
    print(json.dumps([row for which in configurations(everywhere) for row in figures(*which)]))


if __name__ == "__main__":
    main()
