"""How the kernels are cut into tiles on each architecture.

A tile that fits keeps its accumulators in registers. The tables were made by compiling with Triton
3.6 to 3.9: the tiles use no stack, which `tests/kernels/attention/test_compile.py` checks, and are
the largest tried that do not, or those with the fewest instructions per score. Which are fastest is
for `python -m bench.gpu` to say (docs/gpu_results.md).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from torch import Tensor

from .mask import Mask


class Tiles(NamedTuple):
    """Queries and keys of a tile, warps of a program, and stages of its software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    split: bool = False
    """dk and dv only: the tiles of queries that see all the keys have a loop without a mask."""


FORWARD, QUERY_GRADIENT, KEY_GRADIENT = "forward", "query gradient", "key gradient"

_HEAD_DIMS = (64, 128, 256)
"""The largest head dimension of each column."""

_TABLE = {
    ("sm_80", FORWARD): (Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 1), Tiles(64, 32, 8, 2)),
    ("sm_80", QUERY_GRADIENT): (Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 2), Tiles(64, 32, 8, 1)),
    ("sm_80", KEY_GRADIENT): (Tiles(64, 128, 8, 2), Tiles(64, 64, 8, 1), Tiles(32, 32, 8, 1)),
    ("sm_90", FORWARD): (Tiles(128, 128, 8, 2), Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 2)),
    ("sm_90", QUERY_GRADIENT): (Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2), Tiles(64, 32, 8, 2)),
    ("sm_90", KEY_GRADIENT): (Tiles(64, 128, 8, 2), Tiles(64, 128, 8, 2), Tiles(32, 32, 8, 1)),
    ("sm_100", FORWARD): (Tiles(128, 128, 8, 2), Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 2)),
    ("sm_100", QUERY_GRADIENT): (Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2), Tiles(64, 32, 8, 2)),
    ("sm_100", KEY_GRADIENT): (Tiles(64, 128, 8, 1), Tiles(64, 128, 8, 1), Tiles(32, 32, 8, 1)),
    ("gfx9", FORWARD): (Tiles(128, 64, 4, 1), Tiles(128, 64, 4, 1), Tiles(64, 32, 4, 1)),
    ("gfx9", QUERY_GRADIENT): (Tiles(128, 64, 4, 1), Tiles(128, 32, 4, 1), Tiles(32, 32, 4, 1)),
    ("gfx9", KEY_GRADIENT): (Tiles(64, 64, 4, 1), Tiles(32, 64, 4, 1), Tiles(16, 32, 4, 1)),
}
_FLOAT32 = {
    # Products in full float32 run outside the tensor cores and need many registers: at head
    # dimension 256 the forward and dq spill on sm_90 and sm_100 with every tile tried.
    FORWARD: (Tiles(32, 32, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 8, 1)),
    QUERY_GRADIENT: (Tiles(32, 16, 8, 1), Tiles(16, 16, 8, 2), Tiles(16, 16, 8, 2)),
    KEY_GRADIENT: (Tiles(16, 32, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 8, 1)),
}

_OTHERWISE: dict[tuple[int, int] | None, dict[tuple[Any, ...], Tiles]] = {
    # Where the tile above would use stack: by kind of call, see `_kinds`, and by release of Triton,
    # for each, with the ptxas in it, allots registers in its own way. None: any release.
    None: {
        ("sm_80", QUERY_GRADIENT, 128, "positions"): Tiles(64, 32, 4, 2),
        ("sm_80", KEY_GRADIENT, 64, "softcap"): Tiles(32, 128, 8, 2),
        ("sm_90", QUERY_GRADIENT, 256, "positions"): Tiles(32, 32, 4, 2),
        ("sm_90", KEY_GRADIENT, 128, "softcap"): Tiles(32, 128, 8, 2),
        ("sm_90", KEY_GRADIENT, 128, "pointers"): Tiles(32, 128, 8, 2),
        ("sm_100", FORWARD, 64, "positions"): Tiles(128, 64, 8, 2),
        ("sm_100", QUERY_GRADIENT, 128, "full"): Tiles(128, 32, 8, 2),
        ("sm_100", KEY_GRADIENT, 64, "documents"): Tiles(32, 128, 8, 1),
    },
    (3, 6): {
        ("sm_80", KEY_GRADIENT, 64): Tiles(32, 128, 8, 1),
        ("sm_90", KEY_GRADIENT, 128): Tiles(32, 128, 8, 2),
        ("sm_90", KEY_GRADIENT, 128, "positions"): Tiles(32, 128, 8, 2, split=True),
        ("sm_90", QUERY_GRADIENT, 64, "float32"): Tiles(16, 16, 8, 1),
        ("sm_100", QUERY_GRADIENT, 64, "float32"): Tiles(16, 16, 8, 1),
        ("sm_100", FORWARD, 64): Tiles(128, 64, 8, 1),
        ("sm_100", QUERY_GRADIENT, 64): Tiles(128, 64, 8, 1),
        ("sm_100", KEY_GRADIENT, 64, "window"): Tiles(64, 64, 8, 1),
    },
    (3, 7): {
        ("sm_80", QUERY_GRADIENT, 128, "window"): Tiles(64, 64, 8, 2),
        ("sm_90", KEY_GRADIENT, 128, "window"): Tiles(32, 128, 8, 2),
        ("sm_80", KEY_GRADIENT, 64, "positions"): Tiles(32, 128, 8, 2),
        ("sm_90", KEY_GRADIENT, 128, "documents"): Tiles(32, 128, 8, 2),
        ("sm_90", KEY_GRADIENT, 128, "full"): Tiles(32, 128, 8, 2),
        ("sm_100", FORWARD, 64): Tiles(128, 64, 8, 2),
    },
    (3, 8): {
        ("sm_90", KEY_GRADIENT, 128): Tiles(32, 128, 8, 2),
        ("sm_100", QUERY_GRADIENT, 64): Tiles(128, 64, 8, 1),
        ("sm_100", KEY_GRADIENT, 128, "float32"): Tiles(16, 16, 8, 2),
    },
    (3, 9): {
        ("sm_90", KEY_GRADIENT, 256, "float32"): Tiles(16, 16, 8, 2),
        ("sm_100", KEY_GRADIENT, 256, "float32"): Tiles(16, 16, 8, 2),
    },
}
_MAJOR, _MINOR, *_ = triton.__version__.split(".")
_RELEASE = int(_MAJOR), int(_MINOR)
_EXCEPTIONS = _OTHERWISE[None] | _OTHERWISE.get(_RELEASE, {})


def choose(
    kernel: str, arch: str, q: Tensor, mask: Mask, softcap: float | None, described: bool
) -> Tiles:
    """The tiles of a kernel.

    Args:
        kernel: FORWARD, QUERY_GRADIENT or KEY_GRADIENT.
        arch: as `target.architecture` names it; one that is not in the table is treated as sm_80.
        q: (B, H, S, D), D at most 256.
        mask, softcap: what the loops hold in registers beside the tiles.
        described: whether the tiles in the loop come through tensor descriptors.
    """
    column = next(i for i, largest in enumerate(_HEAD_DIMS) if q.shape[3] <= largest)
    where = _family(arch), kernel, _HEAD_DIMS[column]
    if q.element_size() == 4:
        return _EXCEPTIONS.get((*where, "float32"), _FLOAT32[kernel][column])
    for kind in _kinds(mask, softcap, described):
        if (*where, kind) in _EXCEPTIONS:
            return _EXCEPTIONS[(*where, kind)]
    return _EXCEPTIONS.get(where, _TABLE[where[:2]][column])


def _kinds(mask: Mask, softcap: float | None, described: bool) -> Iterator[str]:
    """What sets a call apart from a causal one by rows, the most demanding first."""
    if softcap is not None:
        yield "softcap"
    if mask.window_position_ids is not None:
        yield "positions"
    if mask.window is not None:
        yield "window"
    if mask.cu_seqlens is not None:
        yield "documents"
    if not mask.causal:
        yield "full"
    if not described:
        yield "pointers"


def _family(arch: str) -> str:
    if arch.startswith("gfx"):
        return "gfx9"
    if arch.startswith(("sm_10", "sm_11")):  # with memory of their own for the tensor cores
        return "sm_100"
    return "sm_90" if arch.startswith("sm_9") else "sm_80"
