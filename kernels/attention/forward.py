"""The forward kernel: softmax over keys in one pass (FlashAttention-2, arXiv 2307.08691).

A program holds a tile of queries and walks over the tiles of keys it can see.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..target import architecture
from . import split_kv, tiles
from .arguments import LENGTHS, check_launchable, common_arguments, strides, tile_arguments
from .mask import Mask
from .memory import descriptor, document_offset, is_described, load_tile, store_tile
from .online_softmax import add_keys
from .schedule import document_tiles, grid, heads_together, key_range, locate, position_at, program


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
    mask = mask.by_rows(q, k)
    if split_kv.applies(q, k):
        split_kv.launch(q, k, v, mask, scale, softcap, out, lse)
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
            **tile_arguments(table, q),
            together=heads_together(k, k.shape[1]) * (q.shape[1] // k.shape[1]),
            **common_arguments(q, k, v, mask, scale, softcap, config),
        )
    return out, lse


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
    heads,
    rows,
    together,
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
    # Under causality the last tiles see most keys.
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
    o_ptr += document_offset(row, head, q_start, stride_ob, stride_oh, stride_os)
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
            acc, mass, m = add_keys(
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
