"""What the loss accepts, checked before any work starts."""

import torch
from torch import Tensor

from ..argument_types import LARGEST, SMALLEST, check_dense, check_dense_if_given, integer, real
from ..autocast import autocast_dtype

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
    check_dense(hidden=hidden, weight=weight, labels=labels)
    check_dense_if_given(bias=bias, token_weight=token_weight)
    given = {"weight": weight, "labels": labels, "bias": bias, "token_weight": token_weight}
    for name, tensor in given.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}")
    check_float("hidden", hidden)
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be torch.int64, got {labels.dtype}")
    if token_weight is not None:
        check_float("token_weight", token_weight)
    if autocast_dtype(hidden) is None:
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


def check_float(name: str, tensor: Tensor) -> None:
    """Raise `TypeError` unless it holds floating-point numbers of 16, 32 or 64 bits."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be floating point of 16 to 64 bits, got {tensor.dtype}")


def checked_softcap(name: str, softcap: float | None) -> float | None:
    """As a float; raise `ValueError` unless it is positive or None."""
    if softcap is None:
        return None
    softcap = real(name, softcap)
    if not SMALLEST <= softcap <= LARGEST:
        raise ValueError(f"{name} must be from {SMALLEST} to {LARGEST:g} or None, got {softcap}")
    return softcap


def checked_options(
    ignore_index: int | None, softcap: float | None, chunk_tokens: int | None
) -> tuple[int | None, float | None, int | None]:
    """In their types; raise `ValueError` unless soft cap and chunk are positive or None."""
    softcap = checked_softcap("softcap", softcap)
    if ignore_index is not None:
        ignore_index = integer("ignore_index", ignore_index)
    if chunk_tokens is not None:
        chunk_tokens = integer("chunk_tokens", chunk_tokens)
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1 or None, got {chunk_tokens}")
    return ignore_index, softcap, chunk_tokens


def checked_loss(
    hidden: Tensor,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    num_items: float | Tensor | None,
) -> tuple[float, float, float | Tensor | None]:
    """The three numbers in their types; raise `ValueError` unless they have a meaning."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    label_smoothing, z_loss = real("label_smoothing", label_smoothing), real("z_loss", z_loss)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    if not 0.0 <= z_loss <= LARGEST:
        raise ValueError(f"z_loss must be from 0 to {LARGEST:g}, got {z_loss}")
    if num_items is not None:
        if reduction != "mean":
            raise ValueError(
                f"num_items divides reduction='mean' only, got reduction={reduction!r}"
            )
        num_items = _checked_items(num_items, hidden)
    return label_smoothing, z_loss, num_items


def _checked_items(num_items: float | Tensor, hidden: Tensor) -> float | Tensor:
    if isinstance(num_items, Tensor):
        check_dense(num_items=num_items)
        if num_items.dim() != 0 or num_items.is_complex():
            raise ValueError(
                f"num_items must be a 0-dim tensor of real numbers, got {tuple(num_items.shape)} "
                f"{num_items.dtype}"
            )
        if num_items.is_meta and not hidden.is_meta:
            raise ValueError(f"num_items is on meta, hidden on {hidden.device}")
        return num_items
    num_items = real("num_items", num_items)
    if not SMALLEST <= num_items <= LARGEST:
        raise ValueError(f"num_items must be from {SMALLEST} to {LARGEST:g}, got {num_items}")
    return num_items
