"""Position maps: which relative position a query and a key are given, other than their distance.

RoPE sees `position(query) - position(key)` only. A map that is not a difference of that form is one
in pieces: for each group of queries the keys are cut into ranges, and in each range the queries and
the keys have positions of their own. Every range is one pass of ordinary attention.

Indices count the tokens of one document from 0. The queries are its last tokens, `first ..
total - 1`, and the keys all of them, so a map serves a whole prompt and a single new token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lrk.field_types import check_types

Positions = Callable[[Tensor], Tensor]
"""From indices in the document to positions, both int64."""


class Pass(NamedTuple):
    """A range of keys, and where its queries and keys pretend to be."""

    keys: range
    query_positions: Positions
    key_positions: Positions
    causal: bool = True
    """Hide the keys after the query, or rather after the key `shift` before it."""
    shift: int = 0
    window: int | None = None
    """See only the last keys before that."""


class Group(NamedTuple):
    """Queries, by their indices, and the passes that together hold every key they see, once."""

    queries: range
    passes: list[Pass]


class PositionMap(Protocol):
    def groups(self, first: int, total: int) -> Iterator[Group]:
        """The queries `first .. total - 1`, in order."""


@dataclass(frozen=True)
class SelfExtend:
    """Ordinary positions for the neighbours, those of groups beyond (2401.01325, 3).

    The relative position is `m - n` below `window`, else `m // group + window - window // group -
    n // group`: it goes on rising behind the window, `group` times as slowly.
    """

    window: int
    group: int

    def __post_init__(self) -> None:
        check_types(self)
        _require_positive(window=self.window, group=self.group)
        if self.window % self.group:
            raise ValueError(
                f"window is {self.window}; it must be a multiple of group {self.group}"
            )

    def groups(self, first: int, total: int) -> Iterator[Group]:
        shift = self.window - self.window // self.group
        return _near_and_far(
            first,
            total,
            near=self.window,
            far_query=lambda m: m // self.group + shift,
            far_key=lambda n: n // self.group,
        )


@dataclass(frozen=True)
class String:
    """Far keys are moved closer, to distances that pretraining knows well (2410.18745, 4.2).

    The relative position is `m - n` up to `shift`, beyond it `m - n - shift + window`.
    """

    shift: int
    window: int = 128

    def __post_init__(self) -> None:
        check_types(self)
        _require_positive(shift=self.shift, window=self.window)
        if self.window > self.shift:
            raise ValueError(f"window is {self.window}; it must be at most shift, {self.shift}")

    def groups(self, first: int, total: int) -> Iterator[Group]:
        return _near_and_far(
            first,
            total,
            near=self.shift + 1,
            far_query=lambda m: m - self.shift + self.window,
            far_key=_same,
        )


@dataclass(frozen=True)
class DualChunk:
    """Keys count from the start of their chunk, queries by how far away it is (2402.17463, 3).

    A key is at `n % chunk`. A query is at `m % chunk` for the keys of its own chunk, at
    `min(m % chunk + chunk, length - 1)` for those of the chunk before, so that neighbours across
    the border keep their distance, and at `length - 1` for all others.
    """

    chunk: int
    length: int

    def __post_init__(self) -> None:
        check_types(self)
        _require_positive(chunk=self.chunk, length=self.length)
        if self.chunk >= self.length:
            raise ValueError(f"chunk is {self.chunk}; it must be below length, {self.length}")

    def groups(self, first: int, total: int) -> Iterator[Group]:
        for start in range(first - first % self.chunk, total, self.chunk):
            queries = range(max(first, start), min(total, start + self.chunk))
            passes = [Pass(range(start, queries.stop), self._in_chunk, self._in_chunk)]
            before = max(0, start - self.chunk)
            for keys, query in (
                (range(before, start), self._after_a_chunk),
                (range(before), self._far),
            ):
                if keys:
                    passes.append(Pass(keys, query, self._in_chunk, causal=False))
            yield Group(queries, passes)

    def _in_chunk(self, index: Tensor) -> Tensor:
        return index % self.chunk

    def _after_a_chunk(self, index: Tensor) -> Tensor:
        return (index % self.chunk + self.chunk).clamp(max=self.length - 1)

    def _far(self, index: Tensor) -> Tensor:
        return torch.full_like(index, self.length - 1)


def _near_and_far(
    first: int, total: int, near: int, far_query: Positions, far_key: Positions
) -> Iterator[Group]:
    """Distances below `near` are themselves; keys that are further have positions of their own."""
    if first < near:
        stop = min(near, total)
        yield Group(range(first, stop), [Pass(range(stop), _same, _same)])
    start = max(near, first)
    if start < total:
        neighbours = Pass(range(start - near + 1, total), _same, _same, window=near)
        others = Pass(range(total - near), far_query, far_key, shift=near)
        yield Group(range(start, total), [neighbours, others])


def _same(index: Tensor) -> Tensor:
    return index


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if not 1 <= value <= 2**31:
            raise ValueError(f"{name} is {value}; it must be at least 1, and at most 2^31")
