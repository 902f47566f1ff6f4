"""`linear_kl`: the public function."""

import functools
from typing import Any

import torch
from torch import Tensor

from ...argument_types import check_dense
from ...differentiation import check_differentiation
from ..arguments import check_tensors, checked_loss, checked_options, checked_softcap
from ..chunks import kept_tokens, sum_dtype
from ..op import compute_dtype_of
from ..reduction import needed, reduce_tokens, reduce_total, widened
from .arguments import check_teacher, checked_temperature
from .operations import BY_DEVICE, BY_TRITON, Operations


def _divergence(
    operations: Operations,
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
    check_dense(hidden=hidden)
    if labels is None:
        labels, ignore_index = hidden.new_zeros(hidden.shape[:-1], dtype=torch.int64), None
    check_tensors(hidden, weight, labels, bias, token_weight)
    check_teacher(hidden, weight, teacher_hidden, teacher_weight, teacher_bias)
    ignore_index, softcap, chunk_tokens = checked_options(ignore_index, softcap, chunk_tokens)
    teacher_softcap = checked_softcap("teacher_softcap", teacher_softcap)
    temperature = checked_temperature(temperature)
    _, _, num_items = checked_loss(hidden, reduction, 0.0, 0.0, num_items)
    check_differentiation(
        "linear_kl",
        hidden,
        weight,
        bias,
        token_weight,
        teacher_hidden,
        teacher_weight,
        teacher_bias,
    )
    teacher = [
        None if tensor is None else tensor.detach()
        for tensor in (teacher_hidden, teacher_weight, teacher_bias)
    ]
    token_weight = widened(token_weight, sum_dtype(hidden.dtype))
    compute_dtype, teacher_dtype = (
        compute_dtype_of(operations.widens, tensor) for tensor in (hidden, teacher_hidden)
    )
    options = (
        *teacher, ignore_index, temperature, softcap, teacher_softcap, chunk_tokens,
        teacher_dtype, compute_dtype,
    )  # fmt: skip
    needs = needed(hidden, weight, bias)
    kept = kept_tokens(labels, ignore_index)
    if reduction == "none" or not any(needs):
        divergence = operations.tokens(hidden, weight, labels, bias, *options)
        return reduce_tokens(divergence, kept, reduction, token_weight, num_items)

    def total(token_weight: Tensor | None) -> Tensor:
        return operations.total(hidden, weight, labels, bias, token_weight, *options, needs)[0]

    return reduce_total(
        total, kept, reduction, token_weight, num_items, sum_dtype(compute_dtype),
        divides_before=operations.widens(hidden),
    )  # fmt: skip


def linear_kl(
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
    """Divergence of a student's next-token distribution from a teacher's, without all the logits.

    The loss of token i, with the distributions p = softmax(teacher's logits / T) and q =
    softmax(student's logits / T) at temperature T, is in nats

        w_i T^2 KL(p || q) = w_i T^2 sum_v p_v (log p_v - log q_v),   w_i = token_weight[i].

    The factor T^2 is that of Hinton et al. (Distilling the Knowledge in a Neural Network, arXiv
    1503.02531, section 2): gradients of the rest shrink as 1 / T^2, so that with it the loss keeps
    its share beside a cross-entropy when the temperature changes. Divide by it for the bare
    divergence.

    It is differentiable in hidden, weight, bias and token_weight. Of the teacher it takes values
    only: its tensors are detached, whether they require gradients or not.

    Args:
        hidden: (..., H), float32, bfloat16, float16; on a CPU also float64.
        weight: (V, H), the student's output embedding, in hidden's dtype (under autocast: in any).
        teacher_hidden: (..., Ht), the teacher's hidden states of the same tokens; its dtype may be
            another (float64 only if hidden's is).
        teacher_weight: (V, Ht), in teacher_hidden's dtype (under autocast: in any).
        labels: (...), int64, what `linear_cross_entropy` takes beside it: only where they are
            `ignore_index` matters. None: every token counts, and a GPU is not waited for.
        bias: (V,), as weight. teacher_bias: (V,), as teacher_weight.
        ignore_index: tokens with this label are dropped before the matrix products. None: no token
            is dropped.
        reduction: "mean", "sum" or "none". The mean divides by `num_items`, else by the sum of the
            kept tokens' weights, else by their number; with nothing kept the loss is 0.
        token_weight: (...), floating point, the weight of each token's loss.
        temperature: T, positive, at most 1e4; divides both logits, after the soft caps.
        softcap: the student's logits become softcap * tanh(logits / softcap).
        teacher_softcap: the same of the teacher's.
        num_items: divisor of the mean, a number or a 0-dim tensor on any device.
        chunk_tokens: tokens per chunk; by default see `chunks.chunk_sizes`.

    Returns:
        The loss, float32 (float64 for float64): a scalar, or (...) with 0 at ignored tokens for
        "none". It is never negative.

    The tensors' devices decide: Triton on a GPU, PyTorch on a CPU.

    Precision: that of `linear_cross_entropy`. The divergence is summed from positive terms, see
    `kl.divergence`, so that it is exact also where student and teacher nearly agree.

    Cost: "mean" and "sum" compute gradients in forward, if any are needed (4 matrix products in
    all; they cannot be differentiated again); "none" computes both logits once more in backward
    (6). The workspace is the logits of one chunk, of student and teacher, and on a GPU the 16-bit
    gradients of up to 4,096 tokens; besides it the gradients live from forward to backward.

    Raises:
        ValueError: shapes, devices or options that do not fit; a label outside the vocabulary (not
            checked on a GPU with `ignore_index=None`).
        TypeError: dtypes that do not fit.
    """
    return _divergence(
        BY_DEVICE, hidden, weight, teacher_hidden, teacher_weight, labels, bias, teacher_bias,
        ignore_index, reduction, token_weight, temperature, softcap, teacher_softcap, num_items,
        chunk_tokens,
    )  # fmt: skip


@functools.wraps(linear_kl)
def linear_kl_triton(*args: Any, **kwargs: Any) -> Tensor:
    return _divergence(BY_TRITON, *args, **kwargs)
