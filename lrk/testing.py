"""The tolerance rule by which every kernel here is judged.

Absolute tolerances hide bugs in small numbers and fail on large ones. The rule of flash-attention's
tests has no such constant: compared with a float64 reference, an implementation may be at most a
small factor worse than plain PyTorch computing the same formula in the same dtype.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0


def max_error(value: Tensor, truth: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape, computed in float64; 0 if empty."""
    if value.shape != truth.shape:
        raise ValueError(f"value has shape {tuple(value.shape)}, truth {tuple(truth.shape)}")
    if value.numel() == 0:
        return 0.0
    return (value.double() - truth.double()).abs().max().item()


def assert_as_exact_as(
    ours: Tensor, plain: Tensor, truth: Tensor, factor: float, name: str
) -> None:
    """Raise `AssertionError` if `ours` is over `factor` times as far from `truth` as `plain`.

    Args:
        ours: result under test, any dtype.
        plain: the same quantity by plain PyTorch in the dtype of `ours`.
        truth: the float64 reference.
        factor: `OUTPUT_FACTOR` or `GRADIENT_FACTOR`.
        name: what is compared, for the message.

    The bound has a floor of one rounding of the largest true value to the dtype of `ours`: plain
    PyTorch is exact by luck on tiny inputs, and storing a result costs that rounding in any case.
    """
    assert ours.dtype == plain.dtype, f"{name}: dtype {ours.dtype}, plain PyTorch {plain.dtype}"
    error = max_error(ours, truth)
    largest = truth.abs().max().item() if truth.numel() else 0.0
    bound = max(factor * max_error(plain, truth), torch.finfo(ours.dtype).eps * largest)
    assert error <= bound, f"{name}: error {error:.3e} exceeds {bound:.3e} ({ours.dtype})"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within the block `torch.empty` gives NaN (integers: the largest), so unwritten outputs show.

    PyTorch does so only among deterministic algorithms; those that have none warn.
    """
    memory: Any = torch.utils.deterministic
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    was_filling = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic, warn_only=only_warned)
        memory.fill_uninitialized_memory = was_filling
