"""RoPE on the CPU in plain PyTorch: exact angles, a cache-sized block of tokens at a time."""

import math

import torch
from torch import Tensor

# Elements of q and k per block: few enough for their float32 copies to stay in the caches, enough
# for the operators' work to outweigh the cost of calling them.
_BLOCK_ELEMENTS = 1 << 19


def rotate(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    increments: Tensor,
    attention_scaling: float,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """The kernel's result on CPU tensors. float64 is rotated in float64, the rest in float32."""
    if position_ids.numel():
        for position in (position_ids.min().item(), position_ids.max().item()):
            if not 0 <= position <= 2**38:
                raise ValueError(f"position_ids must be from 0 to 2^38, got {position}")
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    (batch, num_heads, length, _), half = q.shape, increments.numel()
    heads = num_heads + k.shape[1]
    rotary_dim = 2 * half
    for x, out in ((q, q_out), (k, k_out)):
        out[..., rotary_dim:] = x[..., rotary_dim:]

    size = min(length, max(1, _BLOCK_ELEMENTS // max(1, batch * heads * rotary_dim)))
    if size == 0:
        return q_out, k_out
    dtype = torch.promote_types(q.dtype, torch.float32)
    buffers = q.new_empty(2, batch, size, heads, rotary_dim, dtype=dtype)
    x, rotated = buffers.transpose(2, 3)
    first, second = (
        (slice(0, None, 2), slice(1, None, 2))
        if interleaved
        else (slice(None, half), slice(half, None))
    )
    for q_block, k_block, q_rotated, k_rotated, positions in zip(
        *(t[..., :rotary_dim].split(size, dim=2) for t in (q, k, q_out, k_out)),
        position_ids.split(size, dim=1),
        strict=True,
    ):
        tokens = positions.shape[1]
        if tokens < size:
            x, rotated = x[:, :, :tokens], rotated[:, :, :tokens]
        x[:, :num_heads], x[:, num_heads:] = q_block, k_block
        cos, sin = _cos_sin(positions, increments, attention_scaling, dtype)
        sin = -sin if inverse else sin
        of_both = cos.repeat_interleave(2, dim=-1) if interleaved else torch.cat([cos, cos], dim=-1)
        torch.mul(x, of_both, out=rotated)
        rotated[..., first].addcmul_(x[..., second], sin, value=-1)
        rotated[..., second].addcmul_(x[..., first], sin)
        q_rotated.copy_(rotated[:, :num_heads])
        k_rotated.copy_(rotated[:, num_heads:])
    return q_out, k_out


def _cos_sin(
    position_ids: Tensor, increments: Tensor, attention_scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scaled cosines and sines (B|1, 1, S, R/2), each within 9e-8 in float32.

    Shifting out the top bit of the exact phase takes off half turns, which only change the sign.
    The rest, an angle in [-pi/2, pi/2], is small enough for float32.
    """
    phase = position_ids[:, None, :, None].long() * increments
    part = phase << 1
    angle = part.double().mul_(math.pi / 2**64).to(dtype)
    sign = 1 - 2 * ((phase ^ part) < 0).to(dtype)
    sign *= attention_scaling
    return angle.cos().mul_(sign), angle.sin().mul_(sign)
