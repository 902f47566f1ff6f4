"""What all kernels of attention are told in the same words."""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from ..target import require_launchable
from .mask import Mask
from .tiles import Tiles

LENGTHS = ["heads", "rows", "together", "q_length", "k_length", "q_offset", "window"]
"""Arguments by whose values Triton need not compile anew."""


def check_launchable(q: Tensor) -> None:
    """Raise `ValueError` for what the kernels do not do."""
    require_launchable("q", q)
    if q.dtype == torch.float64:
        raise ValueError("q has dtype torch.float64: the Triton kernels take at most float32")
    if q.shape[3] > 256:
        raise ValueError(f"q has head dim {q.shape[3]}: the Triton kernels take at most 256")


def strides(name: str, x: Tensor) -> dict[str, int]:
    """Keyword arguments of a kernel for the strides of a (B, H, S, D) tensor."""
    return {f"stride_{name}{axis}": x.stride(i) for i, axis in enumerate("bhsd")}


def common_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
    config: Tiles,
) -> dict[str, Any]:
    """Tensors, their sizes and strides, what is visible, and the tiles."""
    positions = mask.window_position_ids
    return {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        **strides("q", q),
        **strides("k", k),
        **strides("v", v),
        "kv_lengths_ptr": mask.kv_lengths,
        "q_offsets_ptr": mask.q_offsets,
        "positions_ptr": positions,
        "stride_kv_lengths": 0 if mask.kv_lengths is None else mask.kv_lengths.stride(0),
        "stride_q_offsets": 0 if mask.q_offsets is None else mask.q_offsets.stride(0),
        "stride_position_row": 0
        if positions is None or positions.shape[0] == 1
        else positions.stride(0),
        "stride_position": 0 if positions is None else positions.stride(1),
        "heads": q.shape[1],
        "q_length": q.shape[2],
        "k_length": k.shape[2],
        "q_offset": mask.q_offset,
        "window": mask.window,
        "factor": (scale if softcap is None else softcap) * math.log2(math.e),  # rounded once, here
        "softcap_scale": None if softcap is None else scale / softcap,
        "CAUSAL": mask.causal,
        "GROUP": q.shape[1] // k.shape[1],
        "HEAD_DIM": q.shape[3],
        "BLOCK_D": max(triton.next_power_of_2(q.shape[3]), 16),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }


def tile_arguments(table: Tensor | None, q: Tensor) -> dict[str, Any]:
    """The table of tiles of documents, if any, and the rows of the batch that it does not name."""
    return {"tiles_ptr": table, "rows": q.shape[0] if table is None else 1}
