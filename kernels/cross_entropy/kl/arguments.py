"""What the divergence accepts of a teacher, checked before any work starts."""

import torch
from torch import Tensor

from ...argument_types import SMALLEST, check_dense, check_dense_if_given, real
from ...autocast import autocast_dtype
from ..arguments import check_float

_HOTTEST = 1e4
"""At higher temperatures float32 no longer tells two distributions from a uniform one: the
divergence is off by 1e-5 here, by 1e-3 at 1e5, and 0 at 1e9."""


def check_teacher(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
) -> None:
    """Raise `TypeError` or `ValueError` unless the teacher's tensors fit, and fit the student's.

    Its dtype may be another than the student's, and so may its hidden size.
    """
    given = {"teacher_weight": teacher_weight, "teacher_bias": teacher_bias}
    check_dense(teacher_hidden=teacher_hidden, teacher_weight=teacher_weight)
    check_dense_if_given(teacher_bias=teacher_bias)
    for name, tensor in {"teacher_hidden": teacher_hidden, **given}.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}")
    check_float("teacher_hidden", teacher_hidden)
    if teacher_hidden.dtype == torch.float64 != hidden.dtype:
        raise TypeError(f"teacher_hidden is torch.float64, hidden {hidden.dtype}: logits are not")
    if autocast_dtype(hidden) is None:
        for name, tensor in given.items():
            if tensor is not None and tensor.dtype != teacher_hidden.dtype:
                raise TypeError(
                    f"{name} is {tensor.dtype}, teacher_hidden {teacher_hidden.dtype}: "
                    "make them equal"
                )
    if teacher_hidden.shape[:-1] != hidden.shape[:-1] or teacher_hidden.dim() == 0:
        raise ValueError(
            f"teacher_hidden must have hidden's leading shape {tuple(hidden.shape[:-1])}, "
            f"got {tuple(teacher_hidden.shape)}"
        )
    vocab, size = weight.shape[0], teacher_hidden.shape[-1]
    if size == 0:
        raise ValueError("teacher_hidden has no features: its last dimension is 0")
    if teacher_weight.shape != (vocab, size):
        raise ValueError(
            f"teacher_weight must have shape {(vocab, size)}, the student's vocabulary and the "
            f"teacher's hidden size, got {tuple(teacher_weight.shape)}"
        )
    if teacher_bias is not None and teacher_bias.shape != (vocab,):
        raise ValueError(
            f"teacher_bias must have shape ({vocab},), got {tuple(teacher_bias.shape)}"
        )


def checked_temperature(temperature: float) -> float:
    """As a float; raise `ValueError` unless it is positive and not beyond use."""
    temperature = real("temperature", temperature)
    if not SMALLEST <= temperature <= _HOTTEST:
        raise ValueError(f"temperature must be from {SMALLEST} to {_HOTTEST:g}, got {temperature}")
    return temperature
