"""`linear_cross_entropy` and `token_logprobs`: the public functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..argument_types import flag
from ..autocast import autocast_dtype
from ..differentiation import check_differentiation
from .arguments import check_tensors, checked_loss, checked_options
from .chunks import Statistics, kept_tokens, sum_dtype
from .operations import BY_DEVICE, BY_TRITON, Operations
from .reduction import loss_of_tokens, needed, reduce_tokens, reduce_total, widened


def compute_dtype_of(widens: Callable[[Tensor], bool], hidden: Tensor) -> torch.dtype:
    """What the operands of the matrix products are rounded to: autocast's dtype, else hidden's."""
    dtype = hidden.dtype
    if dtype != torch.float64:
        dtype = autocast_dtype(hidden) or dtype
    return sum_dtype(dtype) if widens(hidden) else dtype


def _loss(
    operations: Operations,
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
    check_tensors(hidden, weight, labels, bias, token_weight)
    ignore_index, softcap, chunk_tokens = checked_options(ignore_index, softcap, chunk_tokens)
    label_smoothing, z_loss, num_items = checked_loss(
        hidden, reduction, label_smoothing, z_loss, num_items
    )
    return_lse = flag("return_lse", return_lse)
    check_differentiation("linear_cross_entropy", hidden, weight, bias, token_weight)
    vocab = weight.shape[0]
    token_weight = widened(token_weight, sum_dtype(hidden.dtype))
    compute_dtype = compute_dtype_of(operations.widens, hidden)
    needs = needed(hidden, weight, bias)
    kept = kept_tokens(labels, ignore_index)
    if reduction == "none" or return_lse or not any(needs):
        statistics = Statistics(
            *operations.statistics(
                hidden, weight, labels, bias, ignore_index, softcap, chunk_tokens, compute_dtype,
                0, vocab, label_smoothing > 0.0, False,
            )
        )  # fmt: skip
        loss = loss_of_tokens(statistics, vocab, label_smoothing, z_loss)
        loss = reduce_tokens(loss, kept, reduction, token_weight, num_items)
        return (loss, statistics.lse) if return_lse else loss

    def total(token_weight: Tensor | None) -> Tensor:
        return operations.total(
            hidden, weight, labels, bias, token_weight, ignore_index, label_smoothing, z_loss,
            softcap, chunk_tokens, compute_dtype, needs,
        )[0]  # fmt: skip

    return reduce_total(
        total, kept, reduction, token_weight, num_items, sum_dtype(compute_dtype),
        divides_before=operations.widens(hidden),
    )  # fmt: skip


def linear_cross_entropy(
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
    """Cross-entropy of `softcap(hidden @ weight.T + bias)` against labels, without all the logits.

    The loss of token i with logits x, lse = log sum_v exp x_v, label y, e = label_smoothing, is

        w_i ((1 - e) (lse - x_y) + e (lse - mean_v x_v) + z_loss lse^2),   w_i = token_weight[i].

    It is differentiable in hidden, weight, bias and token_weight, and so is the lse. Nothing is
    shifted: `labels[i]` is what `hidden[i]` should predict.

    Args:
        hidden: (..., H), float32, bfloat16, float16; on a CPU also float64.
        weight: (V, H), the output embedding, in hidden's dtype (under autocast: in any).
        labels: (...), int64, `0 .. V - 1` or `ignore_index`.
        bias: (V,), as weight.
        ignore_index: tokens with this label are dropped before the matrix product. None: no token
            is dropped, and a GPU is not waited for (otherwise once in forward, and once more in
            backward where logits are recomputed, to learn how many are kept).
        reduction: "mean", "sum" or "none". The mean divides by `num_items`, else by the sum of the
            kept tokens' weights, else by their number; with nothing kept the loss is 0.
        token_weight: (...), floating point, the weight of each token's loss.
        label_smoothing: between 0 and 1, as `torch.nn.functional.cross_entropy` defines it.
        z_loss: factor of lse^2 (PaLM, arXiv 2204.02311, section 5).
        softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118).
        num_items: divisor of the mean, a number or a 0-dim tensor on any device: the number of
            tokens in all the micro-batches of one step.
        return_lse: also return the log-sum-exp of each token.
        chunk_tokens: tokens per chunk; by default see `chunks.chunk_sizes`.

    Returns:
        The loss, float32 (float64 for float64): a scalar, or (...) with 0 at ignored tokens for
        "none". With `return_lse` also the lse, (...), of the same dtype, 0 at ignored tokens.

    The tensors' devices decide: Triton on a GPU, PyTorch on a CPU.

    Precision: products are summed in float32 and logits are never rounded to 16 bits; the weight's
    gradient is summed over chunks in float32. Under autocast the operands are rounded to its dtype,
    as in `F.linear`, but gradients are returned in the dtype of hidden and weight unrounded. A CPU
    multiplies in float32 at least, whatever the dtype of its operands and autocast.

    Cost: "mean" and "sum" without `return_lse` compute gradients in forward, if any are needed (3
    matrix products in all; they cannot be differentiated again); otherwise backward computes the
    logits once more (4). The workspace is the logits of one chunk, and on a GPU the 16-bit
    gradients of up to 4,096 tokens; besides it the gradients live from forward to backward.

    Raises:
        ValueError: shapes, devices or options that do not fit; a label outside the vocabulary (on a
            GPU with `ignore_index=None` its loss is NaN instead).
        TypeError: dtypes and types that do not fit; numpy's numbers are numbers.
        NotImplementedError: `torch.func.grad`, `torch.func.jvp` and the like, or a second
            derivative.
    """
    return _loss(
        BY_DEVICE, hidden, weight, labels, bias, ignore_index, reduction, token_weight,
        label_smoothing, z_loss, softcap, num_items, return_lse, chunk_tokens,
    )  # fmt: skip


@functools.wraps(linear_cross_entropy)
def linear_cross_entropy_triton(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
    return _loss(BY_TRITON, *args, **kwargs)


class TokenLogprobs(NamedTuple):
    """Of each token, float32 (float64 for float64), in the shape of labels; 0 at ignored tokens.

    Attributes:
        logprob: log p_y of the label y.
        label_logit: x_y.
        lse: log sum_v exp x_v.
        entropy: -sum_v p_v log p_v in nats, of the whole distribution; None unless asked for.
    """

    logprob: Tensor
    label_logit: Tensor
    lse: Tensor
    entropy: Tensor | None = None


def _token_logprobs(
    operations: Operations,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    ignore_index: int | None = -100,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    entropy: bool = False,
) -> TokenLogprobs:
    check_tensors(hidden, weight, labels, bias)
    ignore_index, softcap, chunk_tokens = checked_options(ignore_index, softcap, chunk_tokens)
    entropy = flag("entropy", entropy)
    check_differentiation("token_logprobs", hidden, weight, bias)
    lse, nll, _, spread = operations.statistics(
        hidden, weight, labels, bias, ignore_index, softcap, chunk_tokens,
        compute_dtype_of(operations.widens, hidden), 0, weight.shape[0], False, entropy,
    )  # fmt: skip
    return TokenLogprobs(-nll, lse - nll, lse, spread if entropy else None)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    ignore_index: int | None = -100,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    entropy: bool = False,
) -> TokenLogprobs:
    """Log-probability and logit of each label, and the log-sum-exp, without all the logits.

    What perplexity, LongPPL, LongCE weights and impactful-token analysis need of a model. All are
    differentiable. The other arguments, precision and errors are those of `linear_cross_entropy`;
    backward computes the logits once more.

    Args:
        entropy: also give the entropy of each token's distribution, as a penalty or bonus of
            policy gradients needs it (dH / dx_v = -p_v (log p_v + H)). It is summed relative to the
            largest logit, from terms of one sign, so that it is exact for confident tokens too. It
            costs no further matrix product.
    """
    return _token_logprobs(
        BY_DEVICE, hidden, weight, labels, bias, ignore_index, softcap, chunk_tokens, entropy
    )


@functools.wraps(token_logprobs)
def token_logprobs_triton(*args: Any, **kwargs: Any) -> TokenLogprobs:
    return _token_logprobs(BY_TRITON, *args, **kwargs)
