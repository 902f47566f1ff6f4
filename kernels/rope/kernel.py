"""RoPE in one pass: angles from raw positions in registers, q and k in one launch."""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..target import require_launchable

_MAX_GRID_Y = 65535  # CUDA's and HIP's limit


@triton.jit
def _cos_sin(phase):
    """Cosine and sine of a phase in units of 2^-64 turns, each within 7e-8, in float32.

    The nearest quarter turn is taken off exactly, in integers. What is left, `u` in [-1/2, 1/2]
    quarter turns, goes through minimax polynomials, with float32 coefficients fitted in sequence:
        sin(pi/2 u) = pi/2 u + u (s1 + s3 u^2 + s5 u^4 + s7 u^6)
        cos(pi/2 u) = 1 + c2 u^2 + c4 u^4 + c6 u^6 + c8 u^8
    s1 is what float32 rounds off pi/2. (tl.cos would reduce its argument in local memory.)
    """
    turns = (phase >> 32).to(tl.int32)  # units of 2^-32 turns, 1.5e-9 rad
    quarter = (turns + (1 << 29)) >> 30
    u = (turns - (quarter << 30)).to(tl.float32) * (1.0 / (1 << 30))
    u2 = u * u
    sine = 0.07967606 - 0.004592684 * u2
    sine = -0.64596295 + sine * u2
    sine = -6.542125e-08 + sine * u2
    sine = 1.5707964 * u + u * sine
    cosine = -0.020855254 + 0.0008935732 * u2
    cosine = 0.25366852 + cosine * u2
    cosine = -1.2337005 + cosine * u2
    cosine = 1.0 + cosine * u2
    # A quarter turn takes (cos, sin) to (-sin, cos).
    odd = (quarter & 1) != 0
    cos, sin = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    cos = tl.where(((quarter + 1) & 2) != 0, -cos, cos)
    sin = tl.where((quarter & 2) != 0, -sin, sin)
    return cos, sin


@triton.jit
def _widen(x):
    """To float32. bfloat16 is its upper half, and shifting takes fewer instructions than casting."""
    if x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def _rotate_heads(
    x_ptr,
    out_ptr,
    stride_xh,
    stride_xs,
    stride_xd,
    stride_oh,
    stride_os,
    stride_od,
    token,
    head_start,
    head_end,
    cos,
    sin,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Rotate heads [head_start, head_end), a multiple of BLOCK_H, of the given tokens."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    dtype = out_ptr.dtype.element_ty
    x_ptrs, out_ptrs = x_ptr + token * stride_xs, out_ptr + token * stride_os
    for head_block in range(head_start, head_end, BLOCK_H):
        head = (head_block + tl.arange(0, BLOCK_H)).to(tl.int64)[:, None, None]
        x_rows, out_rows = x_ptrs + head * stride_xh, out_ptrs + head * stride_oh
        pair = tl.arange(0, BLOCK_HALF)[None, None, :]
        partner = HALF + pair
        mask = pair < HALF
        first = _widen(tl.load(x_rows + pair * stride_xd, mask))
        second = _widen(tl.load(x_rows + partner * stride_xd, mask))
        tl.store(out_rows + pair * stride_od, (first * cos - second * sin).to(dtype), mask)
        tl.store(out_rows + partner * stride_od, (second * cos + first * sin).to(dtype), mask)
        if ROTARY_DIM < HEAD_DIM:
            rest = ROTARY_DIM + tl.arange(0, BLOCK_REST)[None, None, :]
            mask = rest < HEAD_DIM
            tl.store(out_rows + rest * stride_od, tl.load(x_rows + rest * stride_xd, mask), mask)


# Lengths and head counts vary without a recompilation; strides are specialised on being 1 or a
# multiple of 16, which is what makes 128-bit accesses possible.
@triton.jit(
    do_not_specialize=["length", "heads_per_program", "kv_heads_per_program"]
)
def rope_kernel(
    q_ptr,
    k_ptr,
    q_out_ptr,
    k_out_ptr,
    position_ids_ptr,
    increments_ptr,
    stride_qb,
    stride_qh,
    stride_qs,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_qob,
    stride_qoh,
    stride_qos,
    stride_qod,
    stride_kob,
    stride_koh,
    stride_kos,
    stride_kod,
    stride_pb,
    stride_ps,
    length,  # S
    heads_per_program,
    kv_heads_per_program,
    cos_scale,
    sin_scale,  # negative: the inverse rotation
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_KV_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Program (i, j): the i-th block of tokens of the flattened batch, the j-th share of heads."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    token = tl.minimum(token, length - 1).to(tl.int64)
    batch, share = tl.program_id(1).to(tl.int64), tl.program_id(2)
    position = tl.load(position_ids_ptr + batch * stride_pb + token * stride_ps)
    pair = tl.arange(0, BLOCK_HALF)
    increment = tl.load(increments_ptr + pair, pair < HALF, 0)
    cos, sin = _cos_sin(position.to(tl.int64)[:, None] * increment[None, :])
    cos, sin = (cos * cos_scale)[None, :, :], (sin * sin_scale)[None, :, :]
    token = token[None, :, None]

    head_start = share * heads_per_program
    _rotate_heads(
        q_ptr + batch * stride_qb, q_out_ptr + batch * stride_qob,
        stride_qh, stride_qs, stride_qd, stride_qoh, stride_qos, stride_qod,
        token, 
        head_start, head_start + heads_per_program,
        cos, sin, HEAD_DIM, ROTARY_DIM, BLOCK_H, BLOCK_HALF, BLOCK_REST,
    )  # fmt: skip
    head_start = share * kv_heads_per_program
    _rotate_heads(
        k_ptr + batch * stride_kb, k_out_ptr + batch * stride_kob,
        stride_kh, stride_ks, stride_kd, stride_koh, stride_kos, stride_kod,
        token,
        head_start, head_start + kv_heads_per_program, 
        cos, sin, HEAD_DIM, ROTARY_DIM, BLOCK_KV_H, BLOCK_HALF, BLOCK_REST,
    )  # fmt: skip


class Tiles(NamedTuple):
    """How much one program rotates: a block of tokens, a share of the heads, a few at a time."""

    block_tokens: int
    shares: int
    block_heads: int
    block_kv_heads: int
    num_warps: int


def choose_tiles(
    batch: int, length: int, num_heads: int, num_kv_heads: int, half: int, element_size: int
) -> Tiles:
    """Tiles for q (batch, num_heads, length, .) and k (batch, num_kv_heads, length, .).

    Every thread holds 16 bytes of the angles' dimension, so that a block of tokens fills 4 warps
    with one vector each. Where that leaves too few programs, shares of the heads are spread over
    more of them: each share computes its angles anew.
    """
    num_warps = 4
    vectors = triton.cdiv(triton.next_power_of_2(half) * element_size, 16)
    block_tokens = max(1, 32 * num_warps // vectors)
    programs = batch * triton.cdiv(length, block_tokens)
    shares = 1
    while (
        programs * shares < 256
        and num_heads % (2 * shares) == 0
        and num_kv_heads % (2 * shares) == 0
    ):
        shares *= 2
    return Tiles(
        block_tokens,
        shares,
        math.gcd(num_heads // shares, 2),
        math.gcd(num_kv_heads // shares, 2),
        num_warps,
    )


def rotate(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    increments: Tensor,
    attention_scaling: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Launch `rope_kernel` on q (B, H, S, D) and k (B, Hk, S, D) of any strides."""
    require_launchable("q", q)
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    batch, num_heads, length, head_dim = q.shape
    num_kv_heads, half = k.shape[1], increments.numel()
    if q.numel() == 0 and k.numel() == 0:
        return q_out, k_out
    if batch > _MAX_GRID_Y:
        raise ValueError(f"q has a batch of {batch}; the kernel takes at most {_MAX_GRID_Y}")
    tiles = choose_tiles(batch, length, num_heads, num_kv_heads, half, q.element_size())
    grid = (triton.cdiv(length, tiles.block_tokens), batch, tiles.shares)
    with torch.cuda.device_of(q):
        rope_kernel[grid](
            q_ptr=q, k_ptr=k, q_out_ptr=q_out, k_out_ptr=k_out,
            position_ids_ptr=position_ids, increments_ptr=increments.contiguous(),
            **_strides("q", q), **_strides("k", k), **_strides("qo", q_out), **_strides("ko", k_out),
            stride_pb=position_ids.stride(0) if position_ids.shape[0] > 1 else 0,
            stride_ps=position_ids.stride(1),
            length=length,
            heads_per_program=num_heads // tiles.shares,
            kv_heads_per_program=num_kv_heads // tiles.shares,
            cos_scale=attention_scaling,
            sin_scale=-attention_scaling if inverse else attention_scaling,
            HEAD_DIM=head_dim,
            ROTARY_DIM=2 * half,
            BLOCK_TOKENS=tiles.block_tokens,
            BLOCK_H=tiles.block_heads,
            BLOCK_KV_H=tiles.block_kv_heads,
            BLOCK_HALF=triton.next_power_of_2(half),
            BLOCK_REST=triton.next_power_of_2(max(1, head_dim - 2 * half)),
            num_warps=tiles.num_warps,
        )  # fmt: skip
    return q_out, k_out


def _strides(name: str, tensor: Tensor) -> dict[str, int]:
    return dict(zip((f"stride_{name}{axis}" for axis in "bhsd"), tensor.stride(), strict=True))
