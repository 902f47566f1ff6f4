"""A softmax over keys in one pass: the inner loop of the forward kernels.

For each query it keeps the largest product so far `m`, the sum `mass` of `exp(unit * (s - m))`,
and the sum of values with these weights. A score is `unit * s`: `s = q . k` and `unit = scale`, or
under a softcap `s = tanh(q . k * scale / softcap)` and `unit = softcap`. The hardware's exponential
is `exp2`, so scores enter it times `log2(e)`, in one fused multiply-add with the `m` taken off.

Source: online softmax (arXiv 1805.02867), with the sums of FlashAttention-2 (arXiv 2307.08691).
"""

import triton
import triton.language as tl

from .memory import load_described, load_tile
from .schedule import position_at, visible
from .softcap import capped


@triton.jit
def add_keys(
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
