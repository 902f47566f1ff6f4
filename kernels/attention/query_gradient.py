"""The kernel of dq: a program holds a tile of queries and walks over keys."""

import math

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
from .schedule import (
    document_tiles,
    grid,
    heads_together,
    key_range,
    locate,
    position_at,
    program,
    visible,
)
from .softcap import capped

LOG2_E = tl.constexpr(math.log2(math.e))


def launch(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
    grad_q: Tensor,
) -> None:
    """Fill `grad_q`, and `delta` for the other pass."""
    arch = architecture(q)
    described = is_described(arch, k) and is_described(arch, v)
    config = tiles.choose(tiles.QUERY_GRADIENT, arch, q, mask, softcap, described)
    table = document_tiles(mask, q, k, config.block_m, of_keys=False)
    _attention_query_gradient[grid(table, q, config.block_m)](
        do_ptr=grad_out,
        dlse_ptr=grad_lse,
        o_ptr=out,
        lse_ptr=lse,
        delta_ptr=delta,
        dq_ptr=grad_q,
        k_desc=descriptor(k, config.block_n) if described else None,
        v_desc=descriptor(v, config.block_n) if described else None,
        **strides("do", grad_out),
        **strides("o", out),
        **strides("dq", grad_q),
        stride_dlse_b=0 if grad_lse is None else grad_lse.stride(0),
        stride_dlse_h=0 if grad_lse is None else grad_lse.stride(1),
        stride_dlse_s=0 if grad_lse is None else grad_lse.stride(2),
        scale=scale,
        **tile_arguments(table, q),
        together=heads_together(k, k.shape[1]) * (q.shape[1] // k.shape[1]),
        **common_arguments(q, k, v, mask, scale, softcap, config),
    )


@triton.jit(do_not_specialize=LENGTHS)
def _attention_query_gradient(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    dlse_ptr,
    o_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    k_desc,
    v_desc,
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
    stride_ob,
    stride_oh,
    stride_os,
    stride_od,
    stride_dqb,
    stride_dqh,
    stride_dqs,
    stride_dqd,
    stride_dlse_b,
    stride_dlse_h,
    stride_dlse_s,
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
):
    """dq of a tile of queries, walking over keys; also stores their delta for the other pass."""
    tile, row, head = program(heads, rows, together, LAST_FIRST=True)
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
        BLOCK_M,
    )
    if row < 0:
        return
    kv_head = head // GROUP
    q_ptr += document_offset(row, head, q_start, stride_qb, stride_qh, stride_qs)
    k_ptr += document_offset(row, kv_head, k_start, stride_kb, stride_kh, stride_ks)
    v_ptr += document_offset(row, kv_head, k_start, stride_vb, stride_vh, stride_vs)
    do_ptr += document_offset(row, head, q_start, stride_dob, stride_doh, stride_dos)
    o_ptr += document_offset(row, head, q_start, stride_ob, stride_oh, stride_os)
    dq_ptr += document_offset(row, head, q_start, stride_dqb, stride_dqh, stride_dqs)
    of_queries = document_offset(row, head, q_start, heads * q_length, q_length, 1)

    i = first + tl.arange(0, BLOCK_M)
    inside = i < q_count
    q = load_tile(q_ptr, first, q_count, stride_qs, stride_qd, BLOCK_M, BLOCK_D, HEAD_DIM)
    do = load_tile(do_ptr, first, q_count, stride_dos, stride_dod, BLOCK_M, BLOCK_D, HEAD_DIM)
    o = load_tile(o_ptr, first, q_count, stride_os, stride_od, BLOCK_M, BLOCK_D, HEAD_DIM)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    if dlse_ptr is not None:
        dlse_ptr += document_offset(row, head, q_start, stride_dlse_b, stride_dlse_h, stride_dlse_s)
        delta -= tl.load(dlse_ptr + i.to(tl.int64) * stride_dlse_s, mask=inside, other=0.0)
    tl.store(delta_ptr + of_queries + i, delta, mask=inside)
    lse = load_lse(lse_ptr + of_queries, i, q_count)

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
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for stretch in tl.static_range(3):
        low, high = inner_start, inner_end
        if stretch == 0:
            low, high = start, tl.minimum(inner_start, end)
        if stretch == 2:
            low, high = inner_end, end
        if stretch > 0 or window is not None:
            dq = _add_query_gradient(
                dq,
                q,
                do,
                lse,
                delta,
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
    dq *= scale
    store_tile(dq_ptr, dq, first, q_count, stride_dqs, stride_dqd, BLOCK_M, BLOCK_D, HEAD_DIM)


@triton.jit
def load_lse(lse_ptr, i, q_count):
    """lse in units of log2, and +inf for a query without keys: its weights `2^(s - lse)` are 0."""
    lse = tl.load(lse_ptr + i, mask=i < q_count, other=float("inf")) * LOG2_E
    return tl.where(lse == float("-inf"), float("inf"), lse)


@triton.jit
def _add_query_gradient(
    dq,
    q,
    do,
    lse,
    delta,
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
    """Add what the keys from `low` to `high` contribute."""
    for j0 in range(low, high, BLOCK_N):
        if k_desc is None or MASKED:
            k = load_tile(
                k_ptr, j0, k_count, stride_ks, stride_kd, BLOCK_N, BLOCK_D, HEAD_DIM, not MASKED
            )
        else:
            k = load_described(k_desc, row, kv_head, k_start + j0, BLOCK_N, BLOCK_D)
        if v_desc is None or MASKED:
            v = load_tile(
                v_ptr, j0, k_count, stride_vs, stride_vd, BLOCK_N, BLOCK_D, HEAD_DIM, not MASKED
            )
        else:
            v = load_described(v_desc, row, kv_head, k_start + j0, BLOCK_N, BLOCK_D)
        s = capped(tl.dot(q, tl.trans(k), input_precision="ieee"), softcap_scale)
        weights = tl.exp2(s * factor - lse[:, None])
        if MASKED:
            j = (j0 + tl.arange(0, BLOCK_N))[None, :]
            at_j = None
            if positions_ptr is not None:
                at_j = position_at(positions_ptr, stride_position, j, k_count)
            weights = tl.where(visible(p, j, at_p, at_j, k_count, window, CAUSAL), weights, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = weights * (dp - delta[:, None])
        if softcap_scale is not None:
            ds *= 1.0 - s * s
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    return dq
