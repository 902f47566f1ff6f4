"""The kernel of dk and dv: a program holds a tile of keys and walks over queries."""

import triton
import triton.language as tl
from torch import Tensor

from ..target import architecture
from . import tiles
from .forward import LENGTHS, common_arguments, grid, strides
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
from .schedule import document_tiles, locate, position_at, query_range, visible
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
