"""The divergence in plain PyTorch: the specification the others are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_tensors, checked_loss, checked_options, checked_softcap
from ..chunks import kept_tokens
from ..reduction import reduce_tokens
from .arguments import check_teacher, checked_temperature


def _logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, temperature: float
) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    if logits.dtype != torch.float64:
        logits = logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.log_softmax(logits / temperature, -1)


def linear_kl_reference(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None = None,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    token_weight: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    num_items: float | Tensor | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """As `linear_kl`, with all the logits of the kept tokens in memory at once.

    `chunk_tokens` cannot change a result, so it is only checked. In float64 this is the truth that
    errors are measured from.
    """
    if labels is None:
        labels, ignore_index = hidden.new_zeros(hidden.shape[:-1], dtype=torch.int64), None
    check_tensors(hidden, weight, labels, bias, token_weight)
    check_teacher(hidden, weight, teacher_hidden, teacher_weight, teacher_bias)
    ignore_index, softcap, chunk_tokens = checked_options(ignore_index, softcap, chunk_tokens)
    teacher_softcap = checked_softcap("teacher_softcap", teacher_softcap)
    temperature = checked_temperature(temperature)
    _, _, num_items = checked_loss(hidden, reduction, 0.0, 0.0, num_items)

    kept = kept_tokens(labels, ignore_index)
    targets = labels[kept]
    if ((targets < 0) | (targets >= weight.shape[0])).any():
        raise ValueError(f"a label is outside the vocabulary of {weight.shape[0]}")
    log_q = _logprobs(hidden[kept], weight, bias, softcap, temperature)
    with torch.no_grad():
        log_p = _logprobs(
            teacher_hidden[kept], teacher_weight, teacher_bias, teacher_softcap, temperature
        ).to(log_q.dtype)
    p = log_p.exp()
    divergence = (p * (log_p - log_q)).where(p > 0.0, 0.0).sum(-1) * temperature**2
    tokens = log_q.new_zeros(labels.shape).masked_scatter(kept, divergence)
    return reduce_tokens(tokens, kept, reduction, token_weight, num_items)
