"""The backward kernels: one pass for dq, one for dk and dv, and no atomics.

With weights `P = exp(S - lse)`, `dP = dO V^T` and `delta = rowsum(dO * O) - dlse`,

    dS = P * (dP - delta)      dV = P^T dO      dQ = scale dS K      dK = scale dS^T Q,

because `d lse / d S = P` and `d O` contributes `P * (dP - rowsum(P * dP))`, whose row sum equals
`rowsum(dO * O)` (FlashAttention-2, arXiv 2307.08691, section 3.1). A softcap multiplies dS by
`1 - tanh^2`. Every sum is made by one program in a fixed order, so results are deterministic.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..target import architecture
from . import tiles
from .forward import (
    LENGTHS,
    check_launchable,
    common_arguments,
    grid,
    strides,
)
from .mask import Mask
from .memory import (
    descriptor,
    document_offset,
    is_described,
    load_described,
    load_tile,
    store_tile,
)
from .schedule import document_tiles, key_range, locate, position_at, query_range, visible
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
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v by the Triton kernels."""
    check_launchable(q)
    grad_q, grad_k, grad_v = (_new_gradient(x) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_()
    delta = torch.empty_like(lse)
    arch = architecture(q)
    with torch.cuda.device_of(q):
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
            **common_arguments(q, k, v, mask, table, scale, softcap, config),
        )
        # In a document's last tile the accelerator would read the next document, where a NaN
        # would outlive its weight of 0.
        described = is_described(arch, q) and is_described(arch, grad_out)
        described = described and mask.cu_seqlens is None
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
            **common_arguments(q, k, v, mask, table, scale, softcap, config),
        )
    return grad_q, grad_k, grad_v


def _new_gradient(x: Tensor) -> Tensor:
    """Uninitialised, with the heads of a token side by side in memory."""
    batch, heads, length, head_dim = x.shape
    return x.new_empty(batch, length, heads, head_dim).transpose(1, 2)


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
    do_ptr += document_offset(row, head, q_start, stride_dob, stride_doh, stride_dos)
    o_ptr += document_offset(row, head, q_start, stride_ob, stride_oh, stride_os)
    dq_ptr += document_offset(row, head, q_start, stride_dqb, stride_dqh, stride_dqs)
    of_queries = document_offset(row, head, q_start, tl.num_programs(1) * q_length, q_length, 1)

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
    """dk and dv of a tile of keys, walking over the queries of all heads that share them."""
    kv_head = tl.program_id(1)
    row, first, q_start, q_count, k_start, k_count, offset = locate(
        tl.program_id(0),
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
    start, end = query_range(
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
    k = load_tile(k_ptr, first, k_count, stride_ks, stride_kd, BLOCK_N, BLOCK_D, HEAD_DIM)
    v = load_tile(v_ptr, first, k_count, stride_vs, stride_vd, BLOCK_N, BLOCK_D, HEAD_DIM)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        heads = tl.num_programs(1) * GROUP
        of_queries = document_offset(row, head, q_start, heads * q_length, q_length, 1)
        dk, dv = _add_key_gradients(
            dk,
            dv,
            k,
            v,
            j,
            at_j,
            q_ptr + document_offset(row, head, q_start, stride_qb, stride_qh, stride_qs),
            do_ptr + document_offset(row, head, q_start, stride_dob, stride_doh, stride_dos),
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
            start,
            end,
            offset,
            q_count,
            k_count,
            position_count,
            window,
            factor,
            softcap_scale,
            CAUSAL,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_M,
        )
    # Keys beyond a row's valid length see no query: their gradients are zeros.
    stored = k_count
    if tiles_ptr is None:
        stored = k_length
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
    start,
    end,
    offset,
    q_count,
    k_count,
    position_count,
    window,
    factor,
    softcap_scale,
    CAUSAL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    for i0 in range(start, end, BLOCK_M):
        i = i0 + tl.arange(0, BLOCK_M)
        if q_desc is None:
            q = load_tile(q_ptr, i0, q_count, stride_qs, stride_qd, BLOCK_M, BLOCK_D, HEAD_DIM)
        else:
            q = load_described(q_desc, row, head, q_start + i0, BLOCK_M, BLOCK_D)
        if do_desc is None:
            do = load_tile(do_ptr, i0, q_count, stride_dos, stride_dod, BLOCK_M, BLOCK_D, HEAD_DIM)
        else:
            do = load_described(do_desc, row, head, q_start + i0, BLOCK_M, BLOCK_D)
        lse = load_lse(lse_ptr, i, q_count)
        s = capped(tl.dot(k, tl.trans(q), input_precision="ieee"), softcap_scale)
        weights = tl.exp2(s * factor - lse[None, :])
        p = (offset + i)[None, :]
        at_p = None
        if positions_ptr is not None:
            at_p = position_at(positions_ptr, stride_position, p, position_count)
        weights = tl.where(visible(p, j, at_p, at_j, k_count, window, CAUSAL), weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        delta = tl.load(delta_ptr + i, mask=i < q_count, other=0.0)
        ds = weights * (dp - delta[None, :])
        if softcap_scale is not None:
            ds *= 1.0 - s * s
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv
