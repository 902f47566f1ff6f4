"""What the table and the page say of the same rows, before either writes it in its own way."""

from collections.abc import Iterable
from typing import NamedTuple

from bench.gpu.row import Row


class Correctness(NamedTuple):
    """Checks of an operation, how many are right, and the largest error over plain PyTorch's in 16
    bits, None where there is none."""

    op: str
    checks: int
    right: int
    over_plain: float | None


def correctness(rows: Iterable[Row]) -> list[Correctness]:
    """Of the rows of the part `correct`, an entry an operation."""
    by_op: dict[str, list[Row]] = {}
    for row in rows:
        by_op.setdefault(row.op, []).append(row)
    found = []
    for op, some in by_op.items():
        right = sum(row.ok is True for row in some)
        ratios = [row.over_plain for row in some if row.over_plain is not None]
        found.append(Correctness(op, len(some), right, max(ratios, default=None)))
    return found


Directions = dict[str, Row]
"""A provider's rows by their direction."""


class Shape(NamedTuple):
    """An operation in one shape, and what each provider did there."""

    op: str
    sizes: dict[str, int]
    dtype: str
    providers: dict[str, Directions]


def by_shape(rows: Iterable[Row]) -> list[Shape]:
    """Of the rows of the part `kernels`, in their order."""
    found: dict[tuple[str, str, tuple[tuple[str, int], ...]], Shape] = {}
    for row in rows:
        key = row.op, row.dtype, tuple(row.shape.items())
        shape = found.setdefault(key, Shape(row.op, row.shape, row.dtype, {}))
        shape.providers.setdefault(row.provider, {})[row.direction] = row
    return list(found.values())
