"""The specification of rotary position embedding (RoPE)."""

import math

import torch
from einops import rearrange
from torch import Tensor


def angles(position_ids: Tensor, inv_freq: Tensor) -> Tensor:
    """Rotation angles in float64 radians, `(B|1, S, R/2)`.

    The float64 product of position and frequency is exact to 2e-16 of its size: 1e-7 rad at
    position `2^31 - 1`, 5e-12 at 131,071. Phase increments (int64) give the exact angle instead.
    """
    if inv_freq.dtype == torch.int64:
        phase = position_ids[..., None].long() * inv_freq  # wraps at whole turns
        return phase.double() * (2 * math.pi / 2**64)
    return position_ids[..., None].double() * inv_freq.double()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the pairs of the last dimension's first R; dimensions from R on stay.

    The pairs are `(x_j, x_{j + R/2})`, or `(x_{2j}, x_{2j + 1})` where `interleaved`.
    """
    rotary_dim = 2 * cos.shape[-1]
    rotary, rest = x.split([rotary_dim, x.shape[-1] - rotary_dim], dim=-1)
    order = "(j pair)" if interleaved else "(pair j)"
    first, second = rearrange(rotary, f"b h s {order} -> pair b h s j", pair=2)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin])
    return torch.cat([rearrange(turned, f"pair b h s j -> b h s {order}"), rest], dim=-1)


def rope_reference(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    inv_freq: Tensor,
    attention_scaling: float = 1.0,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys, in float64, rounded once to their dtype.

    RoFormer (Su et al., 2021, arXiv:2104.09864, equation 34), with Llama's order of dimensions: the
    partner of dimension `j` is `j + R/2`; where `interleaved`, with RoFormer's own: the partner of
    `2j` is `2j + 1`. See `lrk.kernels.rope.rope` for the arguments.
    """
    rows = position_ids[None] if position_ids.dim() == 1 else position_ids
    theta = rearrange(angles(rows, inv_freq), "b s j -> b 1 s j")
    cos, sin = theta.cos() * attention_scaling, theta.sin() * attention_scaling
    rotated_q, rotated_k = (rotate(x.double(), cos, sin, interleaved) for x in (q, k))
    return rotated_q.to(q.dtype), rotated_k.to(k.dtype)
