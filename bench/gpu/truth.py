"""Attention of one group of heads at lengths whose scores fit no memory, in any precision."""

from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 1024  # of queries whose scores are in memory at a time


class Results(NamedTuple):
    """out and dq (G, S, D), lse (G, S), dk and dv (S, D)."""

    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


@torch.no_grad()
def of_group(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, ends: Tensor | None, dtype: torch.dtype
) -> Results:
    """Causal attention of the query heads that share a key head, and its gradients.

    In float64 it is the truth; in another dtype it rounds as eager attention does: products and
    weights in that dtype, softmax and sums over rows in float32.

    Args:
        q, grad_out: (G, S, D).
        k, v: (S, D).
        ends: (N + 1,) of packed documents, or None for one.
        dtype: of the arithmetic.
    """
    exact = torch.promote_types(dtype, torch.float32)
    length = k.shape[0]
    index = torch.arange(length, device=k.device)
    document = torch.zeros_like(index)
    if ends is not None:
        document = torch.bucketize(index, ends[1:].long(), right=True)
    q, k, v, grad_out = (x.to(dtype) for x in (q, k, v, grad_out))
    scale = k.shape[1] ** -0.5
    out, dq = torch.empty_like(q), torch.empty_like(q)
    lse = q.new_empty(q.shape[:2], dtype=exact)
    dk, dv = torch.zeros_like(k, dtype=exact), torch.zeros_like(v, dtype=exact)
    for head in range(q.shape[0]):
        for start in range(0, length, _ROWS):
            rows = slice(start, start + _ROWS)
            hidden = (document[rows, None] != document) | (index[rows, None] < index)
            scores = (q[head, rows] @ k.T * scale).to(exact).masked_fill_(hidden, -torch.inf)
            lse[head, rows] = scores.logsumexp(-1)
            weights = torch.exp(scores - lse[head, rows, None])
            rounded = weights.to(dtype)
            out[head, rows] = rounded @ v
            gradient = grad_out[head, rows]
            delta = (gradient.to(exact) * out[head, rows].to(exact)).sum(-1, keepdim=True)
            of_scores = (weights * ((gradient @ v.T).to(exact) - delta)).to(dtype)
            dq[head, rows] = of_scores @ k * scale
            dk += of_scores.T @ q[head, rows] * scale
            dv += rounded.T @ gradient
    return Results(out, lse, dq, dk.to(dtype), dv.to(dtype))
