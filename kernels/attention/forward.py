"""The forward kernel: softmax over keys in one pass (FlashAttention-2, arXiv 2307.08691).

A program holds a tile of queries and walks over the tiles of keys it can see. For each query it
keeps the largest product so far `m`, the sum `mass` of `exp(unit * (s - m))`, and the sum of values
with these weights. A score is `unit * s`: `s = q . k` and `unit = scale`, or under a softcap
`s = tanh(q . k * scale / softcap)` and `unit = softcap`. The hardware's exponential is `exp2`, so
scores enter it times `log2(e)`, in one fused multiply-add with the subtraction of `m`.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..target import architecture, require_launchable
from . import tiles
from .mask import Mask
from .memory import (
    descriptor,
    document_offset,
    is_described,
    load_described,
    load_tile,
    store_tile,
)
from .schedule import document_tiles, key_range, locate, position_at, visible
from .softcap import capped


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Output and lse of `op.attention` by the Triton kernel."""
    check_launchable(q)
    batch, heads, q_length, head_dim = q.shape
    out = q.new_empty(batch, q_length, heads, head_dim).transpose(1, 2)
    lse = q.new_empty(batch, heads, q_length, dtype=torch.float32)
    if q.numel() == 0:
        return out, lse
    arch = architecture(q)
    described = is_described(arch, k) and is_described(arch, v)
    config = tiles.choose(tiles.FORWARD, arch, q, mask, softcap, described)
    with torch.cuda.device_of(q):
        table = document_tiles(mask, q, k, config.block_m, of_keys=False)
        _attention_forward[grid(table, q, config.block_m)](
            k_desc=descriptor(k, config.block_n) if described else None,
            v_desc=descriptor(v, config.block_n) if described else None,
            o_ptr=out,
            lse_ptr=lse,
            unit=scale if softcap is None else softcap,
            **strides("o", out),
            **common_arguments(q, k, v, mask, table, scale, softcap, config),
        )
    return out, lse


def check_launchable(q: Tensor) -> None:
    """Raise `ValueError` for what the kernels do not do."""
    require_launchable("q", q)
    if q.dtype == torch.float64:
        raise ValueError("q has dtype torch.float64: the Triton kernels take at most float32")
    if q.shape[3] > 256:
        raise ValueError(f"q has head dim {q.shape[3]}: the Triton kernels take at most 256")


def grid(table: Tensor | None, x: Tensor, block: int) -> tuple[int, int, int]:
    """Tiles of queries (keys), heads, and batch rows, of which a table of tiles names its own."""
    batch, heads, length, _ = x.shape
    if table is None:
        return triton.cdiv(length, block), heads, batch
    return table.shape[0], heads, 1


def strides(name: str, x: Tensor) -> dict[str, int]:
    """Keyword arguments of a kernel for the strides of a (B, H, S, D) tensor."""
    return {f"stride_{name}{axis}": x.stride(i) for i, axis in enumerate("bhsd")}


def common_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    table: Tensor | None,
    scale: float,
    softcap: float | None,
    config: tiles.Tiles,
) -> dict[str, Any]:
    """What the forward and the backward kernels are told in the same words."""
    positions = mask.window_position_ids
    return {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        **strides("q", q),
        **strides("k", k),
        **strides("v", v),
        "tiles_ptr": table,
        "kv_lengths_ptr": mask.kv_lengths,
        "q_offsets_ptr": mask.q_offsets,
        "positions_ptr": positions,
        "stride_kv_lengths": 0 if mask.kv_lengths is None else mask.kv_lengths.stride(0),
        "stride_q_offsets": 0 if mask.q_offsets is None else mask.q_offsets.stride(0),
        "stride_position_row": 0
        if positions is None or positions.shape[0] == 1
        else positions.stride(0),
        "stride_position": 0 if positions is None else positions.stride(1),
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


LENGTHS = ["q_length", "k_length", "q_offset", "window"]


@triton.jit(do_not_specialize=LENGTHS)
def _attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    k_desc,
    v_desc,
    o_ptr,
    lse_ptr,
    tiles_ptr,
    kv_lengths_ptr,
    q_offsets_ptr,
    positions_ptr,
    stride_qb,
    stride_qh,
    stride_qs,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vs,
    stride_vd,
    stride_ob,
    stride_oh,
    stride_os,
    stride_od,
    stride_kv_lengths,
    stride_q_offsets,
    stride_position_row,
    stride_position,
    q_length,
    k_length,
    q_offset,
    window,
    unit,
    factor,
    softcap_scale,
    CAUSAL: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # Under causality the last tiles see most keys: start with them, so that none is left over.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    row, first, q_start, q_count, k_start, k_count, offset = locate(
        tile,
        tiles_ptr,
        kv_lengths_ptr,
        q_offsets_ptr,
        stride_kv_lengths,
        stride_q_offsets,
        q_offset,
        q_length,
        k_length,
        BLOCK_M,
    )
    if row < 0:
        return
    kv_head = head // GROUP
    q_ptr += document_offset(row, head, q_start, stride_qb, stride_qh, stride_qs)
    k_ptr += document_offset(row, kv_head, k_start, stride_kb, stride_kh, stride_ks)
    v_ptr += document_offset(row, kv_head, k_start, stride_vb, stride_vh, stride_vs)
    o_ptr += document_offset(row, head, q_start, stride_ob, stride_oh, stride_os)
    heads = tl.num_programs(1)
    lse_ptr += document_offset(row, head, q_start, heads * q_length, q_length, 1)

    i = first + tl.arange(0, BLOCK_M)
    p = (offset + i)[:, None]
    at_p = None
    position_count = k_length
    if positions_ptr is not None:
        positions_ptr += document_offset(row, 0, k_start, stride_position_row, 0, stride_position)
        if tiles_ptr is not None:
            position_count = k_count
        at_p = position_at(positions_ptr, stride_position, p, position_count)
    start, inner_start, inner_end, end = key_range(
        offset + first,
        offset + tl.minimum(first + BLOCK_M, q_count) - 1,
        k_count,
        window,
        positions_ptr,
        stride_position,
        position_count,
        CAUSAL,
        BLOCK_N,
    )
    q = load_tile(q_ptr, first, q_count, stride_qs, stride_qd, BLOCK_M, BLOCK_D, HEAD_DIM)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # Three stretches: the window's edge, the interior where nothing is hidden, and the diagonal.
    for stretch in tl.static_range(3):
        low, high = inner_start, inner_end
        if stretch == 0:
            low, high = start, tl.minimum(inner_start, end)
        if stretch == 2:
            low, high = inner_end, end
        if stretch > 0 or window is not None:
            acc, mass, m = _add_keys(
                acc,
                mass,
                m,
                q,
                p,
                at_p,
                k_ptr,
                v_ptr,
                k_desc,
                v_desc,
                row,
                kv_head,
                k_start,
                positions_ptr,
                stride_ks,
                stride_kd,
                stride_vs,
                stride_vd,
                stride_position,
                low,
                high,
                k_count,
                window,
                factor,
                softcap_scale,
                CAUSAL,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_N,
                MASKED=stretch != 1,
            )

    without_keys = mass == 0.0
    mass = tl.where(without_keys, 1.0, mass)
    out = acc / mass[:, None]
    lse = tl.where(without_keys, float("-inf"), m * unit + tl.log(mass))
    store_tile(o_ptr, out, first, q_count, stride_os, stride_od, BLOCK_M, BLOCK_D, HEAD_DIM)
    tl.store(lse_ptr + i, lse, mask=i < q_count)


@triton.jit
def _add_keys(
    acc,
    mass,
    m,
    q,
    p,
    at_p,
    k_ptr,
    v_ptr,
    k_desc,
    v_desc,
    row,
    kv_head,
    k_start,
    positions_ptr,
    stride_ks,
    stride_kd,
    stride_vs,
    stride_vd,
    stride_position,
    low,
    high,
    k_count,
    window,
    factor,
    softcap_scale,
    CAUSAL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Continue the softmax of a tile of queries with the keys from `low` to `high`."""
    for j0 in range(low, high, BLOCK_N):
        if k_desc is None or MASKED:
            k = load_tile(
                k_ptr, j0, k_count, stride_ks, stride_kd, BLOCK_N, BLOCK_D, HEAD_DIM, not MASKED
            )
        else:
            k = load_described(k_desc, row, kv_head, k_start + j0, BLOCK_N, BLOCK_D)
        s = capped(tl.dot(q, tl.trans(k), input_precision="ieee"), softcap_scale)
        if MASKED:
            j = (j0 + tl.arange(0, BLOCK_N))[None, :]
            at_j = None
            if positions_ptr is not None:
                at_j = position_at(positions_ptr, stride_position, j, k_count)
            s = tl.where(visible(p, j, at_p, at_j, k_count, window, CAUSAL), s, float("-inf"))
        m_next = tl.maximum(m, tl.max(s, 1))
        # A query that has seen no key yet has m = -inf, and -inf minus -inf is undefined.
        m_finite = m_next
        if MASKED:
            m_finite = tl.where(m_next == float("-inf"), 0.0, m_next)
        weights = tl.exp2(s * factor - (m_finite * factor)[:, None])
        shrink = tl.exp2((m - m_finite) * factor)
        mass = mass * shrink + tl.sum(weights, 1)
        if v_desc is None or MASKED:
            v = load_tile(
                v_ptr, j0, k_count, stride_vs, stride_vd, BLOCK_N, BLOCK_D, HEAD_DIM, not MASKED
            )
        else:
            v = load_described(v_desc, row, kv_head, k_start + j0, BLOCK_N, BLOCK_D)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        m = m_next
    return acc, mass, m
