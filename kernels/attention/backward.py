"""The backward kernels: one pass for dq, one for dk and dv, and no atomics.

With weights `P = exp(S - lse)`, `dP = dO V^T` and `delta = rowsum(dO * O) - dlse`,

    dS = P * (dP - delta)      dV = P^T dO      dQ = scale dS K      dK = scale dS^T Q,

because `d lse / d S = P` and `d O` contributes `P * (dP - rowsum(P * dP))`, whose row sum equals
`rowsum(dO * O)` (FlashAttention-2, arXiv 2307.08691, section 3.1). A softcap multiplies dS by
`1 - tanh^2`. Every sum is made by one program in a fixed order, so results are deterministic.
"""

import torch
from torch import Tensor

from . import key_gradient, query_gradient
from .arguments import check_launchable
from .mask import Mask


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
    mask = mask.by_rows(q, k)
    delta = torch.empty_like(lse)
    with torch.cuda.device_of(q):
        query_gradient.launch(
            grad_out, grad_lse, q, k, v, out, lse, delta, mask, scale, softcap, grad_q
        )
        key_gradient.launch(grad_out, q, k, v, lse, delta, mask, scale, softcap, grad_k, grad_v)
    return grad_q, grad_k, grad_v


def _new_gradient(x: Tensor) -> Tensor:
    """Uninitialised, with the heads of a token side by side in memory."""
    batch, heads, length, head_dim = x.shape
    return x.new_empty(batch, length, heads, head_dim).transpose(1, 2)
