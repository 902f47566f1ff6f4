"""The pass over pairs of rows in PyTorch, a few rows at a time so that they stay in the cache."""

import torch
from torch import Tensor

from ..cpu import BLOCK_ELEMENTS
from .divergence import Head


def _log_softmax(x: Tensor, head: Head, temperature: float) -> Tensor | None:
    """Turn products into log-probabilities, in place; returns d logit / d product, None for 1."""
    slope = None
    if head.bias is not None:
        x += head.bias
    if head.softcap is not None:
        x.div_(head.softcap).tanh_()
        slope = 1.0 - x.square()
        x.mul_(head.softcap)
    x.div_(temperature)
    x.sub_(x.amax(1, keepdim=True))
    x.sub_(x.exp().sum(1, keepdim=True).log())
    return slope


def pair_pass(
    logits: Tensor,
    teacher_logits: Tensor,
    student: Head,
    teacher: Head,
    temperature: float,
    divergence: Tensor,
    pull: Tensor | None,
    gradient: Tensor,
) -> None:
    """See `divergence.PairPass`. Logits and gradient are float32 or float64, and in one place."""
    assert gradient.dtype == logits.dtype
    assert gradient.data_ptr() == logits.data_ptr()
    count, vocab = logits.shape
    rows = max(BLOCK_ELEMENTS // vocab, 1)
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        x, y = logits[part], teacher_logits[part]
        slope = _log_softmax(x, student, temperature)
        _log_softmax(y, teacher, temperature)
        ratio = y - x
        q, p = x.exp_(), y.exp_()
        # Far from 0 as p (r - 1) + q: exp(-r) may overflow, and r is infinite where q is 0. A token
        # that the teacher excludes has p r = 0, also where r is no number.
        far = torch.where(p > 0.0, p * (ratio - 1.0), 0.0).add_(q)
        near = p * (torch.expm1(-ratio).add_(ratio)).clamp_(min=0.0)
        terms = torch.where(ratio.abs() < 1.0, near, far)
        divergence[part] = temperature**2 * terms.sum(1)
        if pull is None:
            continue
        q.sub_(p).mul_((temperature * pull[part])[:, None])
        if slope is not None:
            q.mul_(slope)
