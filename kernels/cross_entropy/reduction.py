"""From the statistics of tokens to the loss of each, and from those to one number."""

from collections.abc import Callable

import torch
from torch import Tensor

from .chunks import Statistics


def loss_of_tokens(
    statistics: Statistics, vocab: int, label_smoothing: float, z_loss: float
) -> Tensor:
    """(1 - e) nll + e (lse - mean_v x_v) + z_loss lse^2 with e = `label_smoothing`."""
    lse, nll, logit_sum, _ = statistics
    loss = nll
    if label_smoothing:
        loss = (1.0 - label_smoothing) * nll + label_smoothing * (lse - logit_sum / vocab)
    if z_loss:
        loss = loss + z_loss * lse.square()
    return loss


def reduce_tokens(
    loss: Tensor,
    kept: Tensor,
    reduction: str,
    token_weight: Tensor | None,
    num_items: float | Tensor | None,
) -> Tensor:
    """Weigh the tokens' losses; add or average them unless `reduction` is "none"."""
    if token_weight is not None:
        loss = loss * token_weight.to(loss.dtype)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / divisor_of_mean(kept, token_weight, num_items, loss.dtype)


def divisor_of_mean(
    kept: Tensor,
    token_weight: Tensor | None,
    num_items: float | Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`num_items`, else the sum of the kept tokens' weights, else their number; 1 if that is 0.

    Args:
        kept: bool, (...): whether each token counts.
    """
    if isinstance(num_items, Tensor):
        divisor = num_items.detach().to(dtype)
        # From another GPU; a number of the host divides as it is.
        if divisor.device.type != "cpu":
            divisor = divisor.to(kept.device)
    elif num_items is not None:
        divisor = kept.new_full((), num_items, dtype=dtype)
    elif token_weight is not None:
        divisor = token_weight.to(dtype).where(kept, 0.0).sum()
    else:
        divisor = kept.sum().to(dtype)
    return divisor.where(divisor != 0.0, 1.0)


def reduce_total(
    total: Callable[[Tensor | None], Tensor],
    kept: Tensor,
    reduction: str,
    token_weight: Tensor | None,
    num_items: float | Tensor | None,
    dtype: torch.dtype,
    divides_before: bool,
) -> Tensor:
    """The "sum" or "mean" of losses of which only a weighted `total` is to be had.

    Args:
        total: of the losses, given the weight of each or None.
        dtype: of the total.
        divides_before: divide the weights and not the total. In float32 nothing underflows by that,
            and backward finds a factor of 1. The divisor's gradient, where token weights have one,
            stays its own.
    """
    if reduction == "sum":
        return total(token_weight)
    divisor = divisor_of_mean(kept, token_weight, num_items, dtype)
    if divides_before:
        share = torch.ones_like(kept, dtype=dtype) if token_weight is None else token_weight
        token_weight, divisor = share / divisor.detach(), divisor / divisor.detach()
    return total(token_weight) / divisor


def widened(token_weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """In `dtype` from the start: its gradients, as factor and in the divisor, meet unrounded."""
    return None if token_weight is None else token_weight.to(dtype)


def needed(*tensors: Tensor | None) -> list[bool]:
    """Which tensors a gradient is wanted of."""
    return [torch.is_grad_enabled() and x is not None and x.requires_grad for x in tensors]
