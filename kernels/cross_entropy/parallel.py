"""Linear cross-entropy with the vocabulary split over the ranks of a process group.

Each rank computes the statistics of its own columns; a label in another's columns counts as a logit
of 0. With m the largest of the ranks' lse,

    lse = m + log sum_r exp(lse_r - m),    label's logit = sum_r (lse_r - nll_r),

and sums of logits add. Autograd through these gives every rank the gradient of its own columns.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..argument_types import flag, integer
from ..differentiation import check_differentiation
from .arguments import check_tensors, checked_loss, checked_options
from .chunks import Statistics, kept_tokens, sum_dtype
from .op import compute_dtype_of
from .operations import BY_DEVICE
from .reduction import loss_of_tokens, reduce_tokens, widened


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over the ranks. Every rank goes on to compute the same loss from it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor, group=group)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class _OfEveryRank(torch.autograd.Function):
    """The same tensor on every rank; its gradient is the sum of the ranks' parts."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


def _over_ranks(shard: Statistics, kept: Tensor, group: dist.ProcessGroup | None) -> Statistics:
    """Statistics of the whole vocabulary from those of each rank's columns; 0 where not kept."""
    largest = shard.lse.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    parts = [torch.exp(shard.lse - largest), shard.lse - shard.nll]
    if shard.logit_sum.numel():
        parts.append(shard.logit_sum)
    exponentials, label_logit, *logit_sum = _SumOverRanks.apply(torch.stack(parts), group)
    lse = (largest + exponentials.log()).where(kept, 0.0)
    whole_sum = logit_sum[0] if logit_sum else shard.logit_sum
    return Statistics(lse, lse - label_logit, whole_sum, shard.entropy)


def vocab_parallel_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
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
    """`linear_cross_entropy` where each rank of `group` holds some rows of the weight.

    Rank r holds rows `r * n` to `(r + 1) * n - 1` with n = `weight.shape[0]` the same on every
    rank; rows from `vocab_size` on are padding and ignored. All other tensors are the same on every
    rank. The loss and the gradients of hidden and token_weight come out the same on every rank,
    those of weight and bias are of the rank's own rows. Backward computes the logits once more.

    Args:
        weight: (n, H). bias: (n,).
        vocab_size: rows of the whole weight, without padding.
        group: the ranks that share the vocabulary; None is all of them.

    The other arguments, the results and the errors are those of `linear_cross_entropy`.
    """
    check_tensors(hidden, weight, labels, bias, token_weight)
    ignore_index, softcap, chunk_tokens = checked_options(ignore_index, softcap, chunk_tokens)
    label_smoothing, z_loss, num_items = checked_loss(
        hidden, reduction, label_smoothing, z_loss, num_items
    )
    vocab_size, return_lse = integer("vocab_size", vocab_size), flag("return_lse", return_lse)
    check_differentiation("vocab_parallel_linear_cross_entropy", hidden, weight, bias, token_weight)
    token_weight = widened(token_weight, sum_dtype(hidden.dtype))
    rows, rank = weight.shape[0], dist.get_rank(group)
    start, end = rank * rows, min((rank + 1) * rows, vocab_size)
    if not (rows * dist.get_world_size(group) >= vocab_size and start < end):
        raise ValueError(
            f"vocab_size {vocab_size} does not fit {dist.get_world_size(group)} ranks of {rows} "
            "rows: each rank must hold at least one row, and together all of them"
        )
    shard = BY_DEVICE.statistics(
        _OfEveryRank.apply(hidden, group),
        weight[: end - start],
        labels,
        None if bias is None else bias[: end - start],
        ignore_index,
        softcap,
        chunk_tokens,
        compute_dtype_of(BY_DEVICE.widens, hidden),
        start,
        vocab_size,
        label_smoothing > 0.0,
        False,
    )
    kept = kept_tokens(labels, ignore_index)
    statistics = _over_ranks(Statistics(*shard), kept, group)
    loss = loss_of_tokens(statistics, vocab_size, label_smoothing, z_loss)
    loss = reduce_tokens(loss, kept, reduction, token_weight, num_items)
    return (loss, statistics.lse) if return_lse else loss
