"""Merging rules. Each is a linear combination of the models, with coefficients for each tensor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lrk.field_types import check_types
from lrk.merge.shard import StoredTensor


class Rule(Protocol):
    """What `merge` needs to know."""

    def check(self, num_models: int) -> None:
        """Raise `ValueError` unless the rule merges this many models."""

    def coefficients(self, tensors: Sequence[StoredTensor]) -> list[float]:
        """The factor of each model, for one tensor of each."""


@dataclass(frozen=True)
class Linear:
    """`sum_i w_i x_i`: model soups (2203.05482); LongRecipe (2409.00509) takes 0.5 and 0.5.

    Attributes:
        weights: one for each model, adding up to 1; None gives all the same.
    """

    weights: list[float] | None = None

    def __post_init__(self) -> None:
        check_types(self)

    def check(self, num_models: int) -> None:
        _require_models(num_models, at_least=2)
        if self.weights is None:
            return
        _check_weights(self.weights, num_models)
        if not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            raise ValueError(f"weights are {_listed(self.weights)}; they must add up to 1")

    def coefficients(self, tensors: Sequence[StoredTensor]) -> list[float]:
        return list(self.weights or [1 / len(tensors)] * len(tensors))


@dataclass(frozen=True)
class Slerp:
    """From one model to another along the arc between them (Shoemake, 1985), for each tensor.

    With `w` the angle between two tensors as vectors, the point at `t` is
    `sin((1 - t) w) / sin(w) x_0 + sin(t w) / sin(w) x_1`. It keeps the length that a straight line
    loses. Where there is no arc (parallel, opposite or zero tensors) it is the straight line.

    Attributes:
        t: 0 is the first model, 1 the second.
    """

    t: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)

    def check(self, num_models: int) -> None:
        if num_models != 2:
            raise ValueError(f"there are {num_models} models; slerp merges 2")
        if not 0 <= self.t <= 1:
            raise ValueError(f"t is {self.t}; it must be between 0 and 1")

    def coefficients(self, tensors: Sequence[StoredTensor]) -> list[float]:
        angle = _angle(*tensors)
        sine = math.sin(angle)
        if sine < 1e-6:  # off by less than 1e-12 of the arc, where there is one
            return [1 - self.t, self.t]
        return [math.sin((1 - self.t) * angle) / sine, math.sin(self.t * angle) / sine]


@dataclass(frozen=True)
class TaskArithmetic:
    """`x_0 + sum_i w_i (x_i - x_0)`: what each model learnt, added to the base (2212.04089).

    The base is the first of the models.

    Attributes:
        weights: one for each model but the base; None gives 1 to all.
    """

    weights: list[float] | None = None

    def __post_init__(self) -> None:
        check_types(self)

    def check(self, num_models: int) -> None:
        _require_models(num_models, at_least=2)
        if self.weights is not None:
            _check_weights(self.weights, num_models - 1)

    def coefficients(self, tensors: Sequence[StoredTensor]) -> list[float]:
        weights = self.weights or [1.0] * (len(tensors) - 1)
        return [1 - sum(weights), *weights]


def _angle(first: StoredTensor, second: StoredTensor) -> float:
    """Between two tensors as vectors, in radians; 0 if one of them is zero."""
    sums = torch.zeros(3, dtype=torch.float64)
    for x, y in zip(first.blocks(), second.blocks(), strict=True):
        sums += torch.stack([x @ x, y @ y, x @ y])
    norms = float(sums[0]) ** 0.5 * float(sums[1]) ** 0.5
    return math.acos(max(-1.0, min(1.0, float(sums[2]) / norms))) if norms else 0.0


def _require_models(num_models: int, at_least: int) -> None:
    if num_models < at_least:
        raise ValueError(f"there are too few models, {num_models}; merging needs {at_least}")


def _check_weights(weights: Sequence[float], count: int) -> None:
    if len(weights) != count or not all(map(math.isfinite, weights)):
        raise ValueError(f"weights are {_listed(weights)}; there must be {count} finite ones")


def _listed(weights: Sequence[float]) -> str:
    return " ".join(map(str, weights))
