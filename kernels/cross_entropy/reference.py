"""Linear cross-entropy in plain PyTorch: the specification the others are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_tensors, checked_loss, checked_options


def _kept_logits(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens count (bool, the shape of labels), and their labels and logits."""
    kept = torch.full_like(labels, True, dtype=torch.bool)
    if ignore_index is not None:
        kept = labels != ignore_index
    targets = labels[kept]
    if ((targets < 0) | (targets >= weight.shape[0])).any():
        raise ValueError(f"a label is outside the vocabulary of {weight.shape[0]}")
    logits = F.linear(hidden[kept], weight, bias)
    if logits.dtype != torch.float64:
        logits = logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return kept, targets, logits


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    token_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    num_items: float | Tensor | None = None,
    return_lse: bool = False,
    chunk_tokens: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `linear_cross_entropy`, with all the logits of the kept tokens in memory at once.

    `chunk_tokens` cannot change a result, so it is only checked. In float64 this is the truth that
    errors are measured from; in lower precision it is what a model with a stock head computes:
    logits in that precision, the loss from their float32 copy.
    """
    check_tensors(hidden, weight, labels, bias, token_weight)
    ignore_index, softcap, chunk_tokens = checked_options(ignore_index, softcap, chunk_tokens)
    label_smoothing, z_loss, num_items = checked_loss(
        hidden, reduction, label_smoothing, z_loss, num_items
    )

    kept, targets, logits = _kept_logits(hidden, weight, labels, bias, ignore_index, softcap)
    lse = logits.logsumexp(-1)
    loss = (
        F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        + z_loss * lse.square()
    )
    weights = torch.ones_like(loss)
    if token_weight is not None:
        weights = token_weight[kept].to(loss.dtype)
    zeros = logits.new_zeros(labels.shape)
    loss = zeros.masked_scatter(kept, weights * loss)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        divisor = weights.sum() if num_items is None else torch.as_tensor(num_items).to(loss)
        loss = loss / divisor if divisor != 0.0 else loss
    return (loss, zeros.masked_scatter(kept, lse)) if return_lse else loss


def token_logprobs_reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    ignore_index: int | None = -100,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    entropy: bool = False,
) -> tuple[Tensor, ...]:
    """As `token_logprobs`: log-probability and logit of each label, log-sum-exp, and entropy."""
    check_tensors(hidden, weight, labels, bias)
    ignore_index, softcap, chunk_tokens = checked_options(ignore_index, softcap, chunk_tokens)
    kept, targets, logits = _kept_logits(hidden, weight, labels, bias, ignore_index, softcap)
    label_logit, lse = logits.gather(-1, targets[:, None])[:, 0], logits.logsumexp(-1)
    found = [label_logit - lse, label_logit, lse]
    if entropy:
        logprobs = logits - lse[:, None]
        # 0 log 0 = 0
        found.append(-(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1))
    zeros = logits.new_zeros(labels.shape)
    return tuple(zeros.masked_scatter(kept, value) for value in found)
