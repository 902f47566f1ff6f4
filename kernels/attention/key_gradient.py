"""The kernel of dk and dv: a program holds a tile of keys and walks over queries."""

import triton
import triton.language as tl
from torch import Tensor

from ..target import architecture
from . import tiles
from .arguments import LENGTHS, common_arguments, strides, tile_arguments
from .mask import Mask
from .memory import (
    descriptor,
    document_offset,
    is_described,
    load_described,
    load_tile,
    store_tile,
)
from .query_gradient import load_lse
from .schedule import (
    document_tiles,
    grid,
    heads_together,
    in_reach,
    locate,
    position_at,
    program,
    query_range,
)
from .softcap import capped


def launch(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None:
    """Fill `grad_k` and `grad_v`, given the `delta` of the other pass."""
    arch = architecture(q)
    described = is_described(arch, q) and is_described(arch, grad_out)
    config = tiles.choose(tiles.KEY_GRADIENT, arch, q, mask, softcap, described)
    table = document_tiles(mask, q, k, config.block_n, of_keys=True)
    _attention_key_gradient[grid(table, k, config.block_n)](
        do_ptr=grad_out,
        lse_ptr=lse,
        delta_ptr=delta,
        dk_ptr=grad_k,
        dv_ptr=grad_v,
        q_desc=descriptor(q, config.block_m) if described else None,
        do_desc=descriptor(grad_out, config.block_m) if described else None,
        **strides("do", grad_out),
        **strides("dk", grad_k),
        **strides("dv", grad_v),
        scale=scale,
        SPLIT=config.split,
        **tile_arguments(table, q),
        together=heads_together(q, k.shape[1]),
        **common_arguments(q, k, v, mask, scale, softcap, config),
    )


EDGE = tl.constexpr(16)
"""Queries of a tile at a document's end, which come by pointers; few, to leave registers to the
others."""


@triton.jit(do_not_specialize=LENGTHS)
def _attention_key_gradient(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    q_desc,
    do_desc,
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
    stride_dob,
    stride_doh,
    stride_dos,
    stride_dod,
    stride_dkb,
    stride_dkh,
    stride_dks,
    stride_dkd,
    stride_dvb,
    stride_dvh,
    stride_dvs,
    stride_dvd,
    stride_kv_lengths,
    stride_q_offsets,
    stride_position_row,
    stride_position,
    heads,
    rows,
    together,
    q_length,
    k_length,
    q_offset,
    window,
    factor,
    softcap_scale,
    scale,
    CAUSAL: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """dk and dv of a tile of keys, walking over the queries of all heads that share them."""
    tile, row, kv_head = program(heads // GROUP, rows, together, LAST_FIRST=False)
    row, first, q_start, q_count, k_start, k_count, offset = locate(
        tile,
        row,
        tiles_ptr,
        kv_lengths_ptr,
        q_offsets_ptr,
        stride_kv_lengths,
        stride_q_offsets,
        q_offset,
        q_length,
        k_length,
        BLOCK_N,
    )
    if row < 0:
        return
    k_ptr += document_offset(row, kv_head, k_start, stride_kb, stride_kh, stride_ks)
    v_ptr += document_offset(row, kv_head, k_start, stride_vb, stride_vh, stride_vs)
    dk_ptr += document_offset(row, kv_head, k_start, stride_dkb, stride_dkh, stride_dks)
    dv_ptr += document_offset(row, kv_head, k_start, stride_dvb, stride_dvh, stride_dvs)

    j = (first + tl.arange(0, BLOCK_N))[:, None]
    at_j = None
    position_count = k_length
    if positions_ptr is not None:
        positions_ptr += document_offset(row, 0, k_start, stride_position_row, 0, stride_position)
        if tiles_ptr is not None:
            position_count = k_count
        at_j = position_at(positions_ptr, stride_position, j, position_count)
    start, inner_start, inner_end, end = query_range(
        first,
        tl.minimum(first + BLOCK_N, k_count) - 1,
        offset,
        q_count,
        window,
        positions_ptr,
        stride_position,
        position_count,
        CAUSAL,
        BLOCK_M,
    )
    # Beyond the end of a row a descriptor reads zeros; beyond that of a document it reads the next
    # one, where a NaN would outlive its weight of 0. So a document's last queries come by pointers.
    HAS_TAIL: tl.constexpr = tiles_ptr is not None and q_desc is not None
    whole = tl.maximum(end, start)
    if HAS_TAIL:
        whole = tl.maximum(tl.minimum(end, q_count // BLOCK_M * BLOCK_M), start)
    elif window is None:
        inner_end = whole  # beyond its end are queries of zeros, with weights of 0
    k = load_tile(k_ptr, first, k_count, stride_ks, stride_kd, BLOCK_N, BLOCK_D, HEAD_DIM)
    v = load_tile(v_ptr, first, k_count, stride_vs, stride_vd, BLOCK_N, BLOCK_D, HEAD_DIM)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # Three stretches as in the forward pass: the diagonal, the interior, and the window's far edge
    # with the tail. Without `SPLIT` the interior takes in all that descriptors can load, masked.
    # Each goes through the heads by itself: three loops inside one would take too many registers.
    HAS_DIAGONAL: tl.constexpr = SPLIT and CAUSAL
    HAS_EDGE: tl.constexpr = HAS_TAIL or (SPLIT and window is not None)
    for stretch in tl.static_range(3):
        low, high = start, whole
        if SPLIT:
            low, high = inner_start, inner_end
        if stretch == 0:
            low, high = start, tl.minimum(inner_start, whole)
        if stretch == 2:
            low, high = whole, end
            if SPLIT:
                low = tl.minimum(inner_end, whole)
        if stretch == 1 or (stretch == 0 and HAS_DIAGONAL) or (stretch == 2 and HAS_EDGE):
            for member in range(GROUP):
                head = kv_head * GROUP + member
                of_queries = document_offset(row, head, q_start, heads * q_length, q_length, 1)
                dk, dv = _add_key_gradients(
                    dk,
                    dv,
                    k,
                    v,
                    j,
                    at_j,
                    q_ptr + document_offset(row, head, q_start, stride_qb, stride_qh, stride_qs),
                    do_ptr
                    + document_offset(row, head, q_start, stride_dob, stride_doh, stride_dos),
                    q_desc,
                    do_desc,
                    row,
                    head,
                    q_start,
                    lse_ptr + of_queries,
                    delta_ptr + of_queries,
                    positions_ptr,
                    stride_qs,
                    stride_qd,
                    stride_dos,
                    stride_dod,
                    stride_position,
                    low,
                    high,
                    offset,
                    q_count,
                    position_count,
                    window,
                    factor,
                    softcap_scale,
                    HEAD_DIM,
                    BLOCK_D,
                    BLOCK_M=EDGE if HAS_TAIL and stretch == 2 else BLOCK_M,
                    DESCRIBED=q_desc is not None and not (HAS_TAIL and stretch == 2),
                    MASKED=CAUSAL and not (SPLIT and stretch == 1),
                )
    # No query sees keys beyond a row's valid length: their gradients are zeros.
    stored = k_count
    if tiles_ptr is None:
        stored = k_length
    if kv_lengths_ptr is not None:
        dk = tl.where(j < k_count, dk, 0.0)
        dv = tl.where(j < k_count, dv, 0.0)
    dk *= scale
    store_tile(dk_ptr, dk, first, stored, stride_dks, stride_dkd, BLOCK_N, BLOCK_D, HEAD_DIM)
    store_tile(dv_ptr, dv, first, stored, stride_dvs, stride_dvd, BLOCK_N, BLOCK_D, HEAD_DIM)


@triton.jit
def _add_key_gradients(
    dk,
    dv,
    k,
    v,
    j,
    at_j,
    q_ptr,
    do_ptr,
    q_desc,
    do_desc,
    row,
    head,
    q_start,
    lse_ptr,
    delta_ptr,
    positions_ptr,
    stride_qs,
    stride_qd,
    stride_dos,
    stride_dod,
    stride_position,
    low,
    high,
    offset,
    q_count,
    position_count,
    window,
    factor,
    softcap_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DESCRIBED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add what the queries from `low` to `high` of one head contribute."""
    for i0 in range(low, high, BLOCK_M):
        i = i0 + tl.arange(0, BLOCK_M)
        if DESCRIBED:
            q = load_described(q_desc, row, head, q_start + i0, BLOCK_M, BLOCK_D)
            do = load_described(do_desc, row, head, q_start + i0, BLOCK_M, BLOCK_D)
        else:
            q = load_tile(q_ptr, i0, q_count, stride_qs, stride_qd, BLOCK_M, BLOCK_D, HEAD_DIM)
            do = load_tile(do_ptr, i0, q_count, stride_dos, stride_dod, BLOCK_M, BLOCK_D, HEAD_DIM)
        lse = load_lse(lse_ptr, i, q_count)
        s = capped(tl.dot(k, tl.trans(q), input_precision="ieee"), softcap_scale)
        weights = tl.exp2(s * factor - lse[None, :])
        if MASKED:
            p = (offset + i)[None, :]
            at_p = None
            if positions_ptr is not None:
                at_p = position_at(positions_ptr, stride_position, p, position_count)
            weights = tl.where(in_reach(p, j, at_p, at_j, window), weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        delta = tl.load(delta_ptr + i, mask=i < q_count, other=0.0)
        ds = weights * (dp - delta[None, :])
        if softcap_scale is not None:
            ds *= 1.0 - s * s
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv
