"""Attention over two disjoint sets of keys, from the attention over each."""

import torch
from torch import Tensor

from ..argument_types import check_dense


def merge_attention(o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Combine two attentions of the same queries over disjoint keys into one over all keys.

    Softmax weights over a union are each set's weights times its share of the total mass, and the
    mass of a set is `exp(lse)`. So the merged output is `o1 * sigmoid(lse1 - lse2) + o2 *
    sigmoid(lse2 - lse1)`. Differentiable in all four arguments.

    Args:
        o1: (B, H, S, D) output over the first keys, and `o2` over the second.
        lse1: (B, H, S) natural log of the summed exponentials, and `lse2` likewise; `-inf` for a
            query without keys in that set.

    Returns:
        The output in the dtype of `o1` and the lse; 0 and `-inf` for a query without any key.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: an argument is no tensor of floating-point numbers.

    Source: SelfExtend, arXiv 2401.01325, and ring attention, arXiv 2310.01889.
    """
    check_dense(o1=o1, lse1=lse1, o2=o2, lse2=lse2)
    for name, x in (("o1", o1), ("lse1", lse1), ("o2", o2), ("lse2", lse2)):
        if not x.is_floating_point() or x.dtype.itemsize == 1:
            raise TypeError(f"{name} has dtype {x.dtype}: must be floating point of 16 to 64 bits")
        if x.device != o1.device:
            raise ValueError(f"{name} is on device {x.device}: must be that of o1, {o1.device}")
    if o1.dim() == 0:
        raise ValueError("o1 has no dimensions: must be (batch, heads, length, head dim)")
    if o1.shape != o2.shape:
        raise ValueError(f"o2 has shape {tuple(o2.shape)}, o1 {tuple(o1.shape)}: must be equal")
    for name, lse in (("lse1", lse1), ("lse2", lse2)):
        if lse.shape != o1.shape[:-1]:
            raise ValueError(
                f"{name} has shape {tuple(lse.shape)}: must be {tuple(o1.shape[:-1])}, o1's "
                "without its last dimension"
            )
    # -inf minus -inf is undefined: a row with neither set of keys merges two zeros by any weights.
    empty = torch.isneginf(lse1) & torch.isneginf(lse2)
    a, b = lse1.masked_fill(empty, 0.0), lse2.masked_fill(empty, 0.0)
    share = torch.sigmoid(a - b)[..., None]
    merged = o1 * share + o2 * torch.sigmoid(b - a)[..., None]
    return merged.to(o1.dtype), torch.logaddexp(a, b).masked_fill(empty, float("-inf"))
