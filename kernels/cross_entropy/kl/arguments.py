"""What the divergence accepts of a teacher, checked before any work starts."""

import math

import torch
from torch import Tensor


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
    for name, tensor in {"teacher_hidden": teacher_hidden, **given}.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}")
    if not teacher_hidden.is_floating_point():
        raise TypeError(f"teacher_hidden must be floating point, got {teacher_hidden.dtype}")
    if teacher_hidden.dtype == torch.float64 != hidden.dtype:
        raise TypeError(f"teacher_hidden is torch.float64, hidden {hidden.dtype}: logits are not")
    if not torch.is_autocast_enabled(hidden.device.type):
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


def check_temperature(temperature: float) -> None:
    """Raise `ValueError` unless it is a positive number."""
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature}")
