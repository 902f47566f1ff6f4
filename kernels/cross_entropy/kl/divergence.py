"""The divergence of a chunk's tokens, from the logits of student and teacher side by side.

With logits a of the student and b of the teacher, temperature T, p = softmax(b / T) and
q = softmax(a / T), a token's divergence is

    T^2 KL(p || q) = T^2 sum_v p_v r_v,    r_v = log p_v - log q_v.

Its terms have both signs and nearly cancel where the two agree, to less than the rounding of one.
Since sum_v (q_v - p_v) = 0 it is also

    T^2 sum_v p_v (r_v + exp(-r_v) - 1),

whose terms are all positive: to first order neither the rounding of the logits nor that of the two
log-sum-exps enters. The gradient with respect to the student's product is

    T (q_v - p_v) (1 - (a_v / softcap)^2).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..chunks import (
    ROW_ALIGNMENT,
    ChunkSizes,
    Gradients,
    Kept,
    accumulate,
    chunk_sizes,
    product,
    sum_dtype,
)


class Head(NamedTuple):
    """Logits softcap(hidden weight^T + bias): hidden (N, H), weight (V, H), bias (V,) or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None


# (logits, teacher's logits, student, teacher, temperature, divergence, pull, gradient): fills the
# divergence and, if there is a `pull` at it, the gradient, whose rows are elsewhere or begin where
# those of the logits do. Both logits become meaningless.
PairPass = Callable[
    [Tensor, Tensor, Head, Head, float, Tensor, Tensor | None, Tensor],
    None,
]


def run(
    pair_pass: PairPass,
    student: Head,
    teacher: Head,
    kept: Kept,
    temperature: float,
    chunk_tokens: int | None,
    compute_dtype: torch.dtype,
    teacher_dtype: torch.dtype,
    pull: Tensor | None = None,
    needs: Sequence[bool] = (False, False, False),
) -> tuple[Tensor, Gradients]:
    """Divergences of the kept tokens and, if there is a `pull`, the gradients that are needed.

    Args:
        compute_dtype: of the operands of the student's matrix products; its sums, and all logits,
            are float32 (float64 for float64).
        teacher_dtype: of the operands of the teacher's product.
        pull: (kept,), the gradient of each divergence.
        needs: whether the gradients of the student's hidden, weight and bias are wanted.

    Returns:
        (kept,), and the gradients of hidden, in its dtype, and of weight and bias, in float32 or
        float64.
    """
    count, vocab = kept.labels.numel(), student.weight.shape[0]
    wide, device = sum_dtype(compute_dtype), student.hidden.device
    if chunk_tokens is None:
        sizes = chunk_sizes(count, vocab, compute_dtype, device, needs[1], matrices=2)
    else:
        sizes = ChunkSizes(chunk_tokens, chunk_tokens)
    weight, teacher_weight = student.weight.to(compute_dtype), teacher.weight.to(teacher_dtype)
    divergence = student.hidden.new_empty(count, dtype=wide)
    row = -(-vocab // ROW_ALIGNMENT) * ROW_ALIGNMENT
    room = student.hidden.new_empty((min(sizes.logits, count), row), dtype=wide)[:, :vocab]

    def chunk_pass(operands: Tensor, part: slice, logits: Tensor, gradient: Tensor) -> None:
        teacher_operands = kept.select(teacher.hidden, part).to(teacher_dtype)
        pair_pass(
            product(operands, weight.t(), out=logits),
            product(teacher_operands, teacher_weight.t(), out=room[: len(operands)]),
            student,
            teacher,
            temperature,
            divergence[part],
            None if pull is None else pull[part],
            gradient,
        )

    gradients = accumulate(chunk_pass, student.hidden, weight, kept, sizes, needs)
    return divergence, gradients
