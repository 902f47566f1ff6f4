"""From the statistics of tokens to the loss of each, and from those to one number."""

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
    elif num_items is not None:
        divisor = kept.new_full((), num_items, dtype=dtype)
    elif token_weight is not None:
        divisor = token_weight.to(dtype).where(kept, 0.0).sum()
    else:
        divisor = kept.sum().to(dtype)
    return divisor.where(divisor != 0.0, 1.0)


def divided_before(
    kept: Tensor, token_weight: Tensor | None, divisor: Tensor
) -> tuple[Tensor, Tensor]:
    """Token weights over the divisor, and the divisor of 1 that is left to divide by.

    In float32 nothing underflows by that, and backward finds a factor of 1. The divisor's gradient,
    where token weights have one, stays its own.
    """
    share = torch.ones_like(kept, dtype=divisor.dtype) if token_weight is None else token_weight
    return share / divisor.detach(), divisor / divisor.detach()
