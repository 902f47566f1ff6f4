"""RoPE in one pass: angles from raw positions in registers, q and k in one launch."""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..target import require_launchable

# Each thread forms 16 angles and turns every head by them, in accesses of 16 bytes: 72 registers in
# bfloat16, 95 in float32.
_ANGLES_PER_THREAD = 16
_NUM_WARPS = 4
# Programs of 4 warps with 64 bytes per thread under way: enough to cover the memory's latency.
_ENOUGH_PROGRAMS = 512
_MAX_BATCH = 65535  # the second dimension of a grid, CUDA's and HIP's limit


@triton.jit
def _cos_sin(phase):
    """Cosine and sine of a phase in units of 2^-64 turns, each within 9e-8, in float32.

    The nearest quarter turn is taken off exactly, in integers. What is left, `u` in [-1/2, 1/2]
    quarter turns, goes through minimax polynomials, with float32 coefficients fitted in sequence:
        sin(pi/2 u) = pi/2 u + u (s1 + s3 u^2 + s5 u^4 + s7 u^6)
        cos(pi/2 u) = 1 + c2 u^2 + c4 u^4 + c6 u^6 + c8 u^8
    s1 is what float32 rounds off pi/2. (tl.cos would reduce its argument in local memory.)
    """
    turns = (phase >> 32).to(tl.int32)  # units of 2^-32 turns, 1.5e-9 rad
    nearest = turns + (1 << 29)  # its two top bits count quarter turns
    u = (turns - (nearest & -(1 << 30))).to(tl.float32) * (1.0 / (1 << 30))
    u2 = u * u
    sine = 0.07967606 - 0.004592684 * u2
    sine = -0.64596295 + sine * u2
    sine = -6.542125e-08 + sine * u2
    sine = 1.5707964 * u + u * sine
    cosine = -0.020855254 + 0.0008935732 * u2
    cosine = 0.25366852 + cosine * u2
    cosine = -1.2337005 + cosine * u2
    cosine = 1.0 + cosine * u2
    # Each quarter turn takes (cos, sin) to (-sin, cos).
    odd = (nearest & (1 << 30)) != 0
    cos, sin = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return _flip_sign(cos, nearest + (1 << 30)), _flip_sign(sin, nearest)


@triton.jit
def _flip_sign(x, bits):
    """-x where the top bit of `bits` is set."""
    return (x.to(tl.int32, bitcast=True) ^ (bits & -(1 << 31))).to(tl.float32, bitcast=True)


@triton.jit
def _widen(x):
    """To float32. bfloat16 is its upper half: a shift, in fewer instructions than the cast."""
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
    INTERLEAVED: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Rotate heads [head_start, head_end) of the tokens whose cosines and sines are given.

    The partner of dimension `pair` is `pair + R/2`; INTERLEAVED pairs 2 `pair` with 2 `pair` + 1.
    """
    dtype = out_ptr.dtype.element_ty
    x_ptr += token[:, None] * stride_xs
    out_ptr += token[:, None] * stride_os
    pair = tl.arange(0, BLOCK_HALF).to(tl.int64)[None, :]
    partner = ROTARY_DIM // 2 + pair
    mask = pair < ROTARY_DIM // 2
    both = tl.arange(0, 2 * BLOCK_HALF).to(tl.int64)[None, :]
    rest = ROTARY_DIM + tl.arange(0, BLOCK_REST).to(tl.int64)[None, :]
    for index in range(head_start, head_end):
        head = tl.cast(index, tl.int64)
        x_row, out_row = x_ptr + head * stride_xh, out_ptr + head * stride_oh
        if INTERLEAVED:
            # Loaded as one and parted in registers: apart, partners take accesses of one element.
            x = _widen(tl.load(x_row + both * stride_xd, both < ROTARY_DIM))
            first, second = tl.split(tl.reshape(x, [x.shape[0], BLOCK_HALF, 2]))
            turned = tl.join(first * cos - second * sin, second * cos + first * sin)
            turned = tl.reshape(turned, x.shape).to(dtype)
            tl.store(out_row + both * stride_od, turned, both < ROTARY_DIM)
        else:
            first = _widen(tl.load(x_row + pair * stride_xd, mask))
            second = _widen(tl.load(x_row + partner * stride_xd, mask))
            tl.store(out_row + pair * stride_od, (first * cos - second * sin).to(dtype), mask)
            tl.store(out_row + partner * stride_od, (second * cos + first * sin).to(dtype), mask)
        if ROTARY_DIM < HEAD_DIM:
            copied = tl.load(x_row + rest * stride_xd, rest < HEAD_DIM)
            tl.store(out_row + rest * stride_od, copied, rest < HEAD_DIM)


# Lengths and head counts vary without a recompilation. Strides are specialised on being 1 or a
# multiple of 16, which is what makes 128-bit accesses possible.
@triton.jit(do_not_specialize=["length", "heads_per_program", "kv_heads_per_program"])
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
    sin_scale,  # of the other sign: the inverse rotation
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Program (i, b, j): the i-th block of tokens of row b, the j-th share of q's and k's heads."""
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    # Lanes beyond the end repeat the last token: no masks. (Unsigned numbers widen for free.)
    token = tl.minimum(token, length - 1).to(tl.uint32).to(tl.int64)
    batch, share = tl.program_id(1).to(tl.int64), tl.program_id(2)
    position = tl.load(position_ids_ptr + batch * stride_pb + token * stride_ps).to(tl.int64)
    pair = tl.arange(0, BLOCK_HALF)
    increment = tl.load(increments_ptr + pair, pair < ROTARY_DIM // 2, 0)
    cos, sin = _cos_sin(position[:, None] * increment[None, :])  # wraps at whole turns
    cos, sin = cos * cos_scale, sin * sin_scale

    head_start = share * heads_per_program
    _rotate_heads(
        q_ptr + batch * stride_qb, q_out_ptr + batch * stride_qob,
        stride_qh, stride_qs, stride_qd, stride_qoh, stride_qos, stride_qod,
        token, head_start, head_start + heads_per_program, cos, sin,
        HEAD_DIM, ROTARY_DIM, INTERLEAVED, BLOCK_HALF, BLOCK_REST,
    )  # fmt: skip
    head_start = share * kv_heads_per_program
    _rotate_heads(
        k_ptr + batch * stride_kb, k_out_ptr + batch * stride_kob,
        stride_kh, stride_ks, stride_kd, stride_koh, stride_kos, stride_kod,
        token, head_start, head_start + kv_heads_per_program, cos, sin,
        HEAD_DIM, ROTARY_DIM, INTERLEAVED, BLOCK_HALF, BLOCK_REST,
    )  # fmt: skip


class Tiles(NamedTuple):
    """What one program takes on: a block of tokens, and one of `shares` parts of the heads."""

    block_tokens: int
    block_half: int
    block_rest: int
    shares: int


def choose_tiles(
    batch: int, length: int, num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int
) -> Tiles:
    """Tiles for q (batch, num_heads, length, head_dim) and k with num_kv_heads.

    Where blocks of tokens alone are too few programs, the heads are shared out over more of them;
    each share forms its angles anew.
    """
    block_half = triton.next_power_of_2(rotary_dim // 2)
    block_rest = triton.next_power_of_2(max(1, head_dim - rotary_dim))
    threads = 32 * _NUM_WARPS
    block_tokens = max(1, threads * _ANGLES_PER_THREAD // max(block_half, block_rest // 2))
    programs = batch * triton.cdiv(length, block_tokens)
    heads = math.gcd(num_heads, num_kv_heads)
    shares = next(
        n for n in range(1, heads + 1)
        if heads % n == 0 and (n == heads or n * programs >= _ENOUGH_PROGRAMS)
    )  # fmt: skip
    return Tiles(block_tokens, block_half, block_rest, shares)


def rotate(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    increments: Tensor,
    attention_scaling: float,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Rotated copies of q (B, H, S, D) and k (B, Hk, S, D), both of any strides, in one launch."""
    require_launchable("q", q)
    if q.dtype == torch.float64:
        raise TypeError("q must be float16, bfloat16 or float32 for the Triton kernel, got float64")
    if q.shape[0] > _MAX_BATCH:
        raise ValueError(f"q must have a batch of at most {_MAX_BATCH}, got {q.shape[0]}")
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    if q.numel() or k.numel():
        grid, arguments = launch_arguments(
            q, k, q_out, k_out, position_ids, increments, attention_scaling, interleaved, inverse
        )
        with torch.cuda.device_of(q):
            rope_kernel[grid](**arguments)
    return q_out, k_out


def launch_arguments(
    q: Tensor,
    k: Tensor,
    q_out: Tensor,
    k_out: Tensor,
    position_ids: Tensor,
    increments: Tensor,
    attention_scaling: float,
    interleaved: bool,
    inverse: bool,
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Grid and arguments of `rope_kernel` that rotate q and k into q_out and k_out."""
    batch, num_heads, length, head_dim = q.shape
    num_kv_heads, rotary_dim = k.shape[1], 2 * increments.numel()
    tiles = choose_tiles(batch, length, num_heads, num_kv_heads, head_dim, rotary_dim)
    strides = {
        f"stride_{name}{axis}": stride
        for name, tensor in (("q", q), ("k", k), ("qo", q_out), ("ko", k_out))
        for axis, stride in zip("bhsd", tensor.stride(), strict=True)
    }
    grid = (triton.cdiv(length, tiles.block_tokens), batch, tiles.shares)
    return grid, dict(
        q_ptr=q,
        k_ptr=k,
        q_out_ptr=q_out,
        k_out_ptr=k_out,
        position_ids_ptr=position_ids,
        increments_ptr=increments.contiguous(),
        **strides,
        stride_pb=position_ids.stride(0) if position_ids.shape[0] > 1 else 0,
        stride_ps=position_ids.stride(1),
        length=length,
        heads_per_program=num_heads // tiles.shares,
        kv_heads_per_program=num_kv_heads // tiles.shares,
        cos_scale=attention_scaling,
        sin_scale=-attention_scaling if inverse else attention_scaling,
        HEAD_DIM=head_dim,
        ROTARY_DIM=rotary_dim,
        INTERLEAVED=interleaved,
        BLOCK_TOKENS=tiles.block_tokens,
        BLOCK_HALF=tiles.block_half,
        BLOCK_REST=tiles.block_rest,
        num_warps=_NUM_WARPS,
        enable_fp_fusion=True,
    )
