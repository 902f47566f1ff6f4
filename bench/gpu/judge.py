"""Results beside float64 and plain PyTorch, by the rule of lrk.testing."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as, max_error

# A float32 sum errs by its order, and plain PyTorch's order may be a lucky one; so may be a single
# number, as a loss. Up to so many roundings of the largest value are never wrong: sums over 701
# queries, one after the other, took up to 7. A product in tf32 has some 4,000.
_FLOAT32_ROUNDINGS = 16


class Verdict(NamedTuple):
    """Largest errors of all results, and what is wrong; empty if nothing is."""

    error: float
    plain_error: float
    fault: str

    @property
    def ok(self) -> bool:
        return not self.fault


class Judged(NamedTuple):
    """One output or gradient in three precisions."""

    name: str
    ours: Tensor
    plain: Tensor
    truth: Tensor
    is_gradient: bool


def judge(results: Sequence[Judged]) -> Verdict:
    """All results of one call."""
    faults = [fault for each in results if (fault := _fault(each))]
    return Verdict(
        max(max_error(each.ours, each.truth) for each in results),
        max(max_error(each.plain, each.truth) for each in results),
        "; ".join(faults),
    )


def _fault(each: Judged) -> str:
    """What is wrong with one result, or nothing."""
    if not each.ours.isfinite().all():
        return f"{each.name} is not finite"
    largest = each.truth.abs().max().item() if each.truth.numel() else 0.0
    if each.ours.dtype == torch.float32:
        floor = _FLOAT32_ROUNDINGS * torch.finfo(torch.float32).eps * largest
        if max_error(each.ours, each.truth) <= floor:
            return ""
    factor = GRADIENT_FACTOR if each.is_gradient else OUTPUT_FACTOR
    try:
        plain = each.plain.to(each.ours.dtype)
        assert_as_exact_as(each.ours, plain, each.truth, factor, each.name)
    except AssertionError as fault:
        return str(fault)
    return ""


def same_bits(first: Sequence[Tensor], again: Sequence[Tensor]) -> bool:
    """Whether two runs agree in every bit, as a kernel without races does."""
    return all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
