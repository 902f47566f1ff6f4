"""What the loss accepts, checked before any work starts."""

import math

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")


def check_tensors(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
) -> None:
    """Raise `TypeError` or `ValueError` unless shapes, dtypes and devices fit together.

    Under autocast the dtypes of hidden, weight and bias may differ, as for `F.linear`.
    """
    given = {"weight": weight, "labels": labels, "bias": bias, "token_weight": token_weight}
    for name, tensor in given.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}")
    if not hidden.is_floating_point():
        raise TypeError(f"hidden must be floating point, got {hidden.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be torch.int64, got {labels.dtype}")
    if token_weight is not None and not token_weight.is_floating_point():
        raise TypeError(f"token_weight must be floating point, got {token_weight.dtype}")
    if not torch.is_autocast_enabled(hidden.device.type):
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != hidden.dtype:
                raise TypeError(f"{name} is {tensor.dtype}, hidden {hidden.dtype}: make them equal")
    if weight.dim() != 2 or hidden.dim() == 0 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            "weight must have shape (vocabulary, hidden size), "
            f"got {tuple(weight.shape)} for hidden of shape {tuple(hidden.shape)}"
        )
    if weight.shape[1] == 0:
        raise ValueError("hidden and weight have no features: their last dimension is 0")
    if weight.shape[0] == 0:
        raise ValueError("weight has an empty vocabulary")
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels must have hidden's leading shape {tuple(hidden.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if token_weight is not None and token_weight.shape != labels.shape:
        raise ValueError(
            f"token_weight must have the shape of labels, {tuple(labels.shape)}, "
            f"got {tuple(token_weight.shape)}"
        )


def check_softcap(name: str, softcap: float | None) -> None:
    """Raise `ValueError` unless it is positive or None."""
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"{name} must be a positive number or None, got {softcap}")


def check_softcap_and_chunk(softcap: float | None, chunk_tokens: int | None) -> None:
    """Raise `ValueError` unless both are positive or None."""
    check_softcap("softcap", softcap)
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1 or None, got {chunk_tokens}")


def check_loss(
    reduction: str, label_smoothing: float, z_loss: float, num_items: float | Tensor | None
) -> None:
    """Raise `ValueError` unless the terms of the loss have a meaning."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be a non-negative number, got {z_loss}")
    if num_items is None:
        return
    if reduction != "mean":
        raise ValueError(f"num_items divides reduction='mean' only, got reduction={reduction!r}")
    if isinstance(num_items, Tensor):
        if num_items.dim() != 0:
            raise ValueError(f"num_items must be a 0-dim tensor, got {tuple(num_items.shape)}")
    elif not 0.0 < num_items < math.inf:
        raise ValueError(f"num_items must be a positive number, got {num_items}")
