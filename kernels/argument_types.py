"""The types of arguments, which Python does not check: each ends as its own type, or in a sentence.

numpy's numbers are numbers, as is whatever says of itself that it is an integer or a real number.
Text is none of them, nor is a number a truth value. A tensor is one only on the CPU: to read it
from a GPU the host would have to wait.
"""

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALLEST, LARGEST = 1e-15, 1e15
"""Of positive factors: their products and quotients are far from 0 and infinity in float32."""


_NOT_REAL = (bool, np.bool_, np.complexfloating)


def integer(name: str, value: Any) -> int:
    """`value` as an integer of 64 bits; `TypeError` for what is none, so for 2.0 as well."""
    if not isinstance(value, bool | np.bool_) and not _is_elsewhere(value):
        try:
            number = value if isinstance(value, int) else operator.index(value)
        except TypeError:
            pass
        else:
            if -(2**63) <= number < 2**63:
                return number
    raise TypeError(f"{name} is {written(value)}: must be an integer")


def real(name: str, value: Any) -> float:
    """`value` as a float; `TypeError` for what is no real number, or beyond all floats."""
    numeric = hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
    if numeric and not isinstance(value, _NOT_REAL) and not _is_elsewhere(value):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            pass
    raise TypeError(f"{name} is {written(value)}: must be a real number")


def flag(name: str, value: Any) -> bool:
    """`value` as a truth value; `TypeError` for what is none: a string would be true."""
    if isinstance(value, bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{name} is {written(value)}: must be True or False")


def check_dense(**tensors: Any) -> None:
    """Raise `TypeError` for the first that is no dense tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {written(value)}: must be a tensor")
        if value.layout != torch.strided or value.is_quantized or value.is_nested:
            raise TypeError(f"{name} is sparse, quantized or nested: must be a dense tensor")


def check_dense_if_given(**tensors: Any) -> None:
    """`check_dense` of those that are not None."""
    check_dense(**{name: value for name, value in tensors.items() if value is not None})


def written(value: Any) -> str:
    """A value in a sentence: on one line, and not all of a long one."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} on {value.device}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'}, of type {kind}"


def _is_elsewhere(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.device.type != "cpu" or value.dim() != 0)
