"""How often each token type, and each part of speech, is among the tokens that gain most."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrk.analysis.rows import column_blocks


@dataclass(frozen=True)
class Counts:
    """Of K classes of tokens, over all places that were ranked.

    Attributes:
        count: (K,) how often each occurs.
        top_count: (K,) how often it is among the top.
    """

    count: NDArray[np.int64]
    top_count: NDArray[np.int64]

    @classmethod
    def of(cls, classes: int) -> "Counts":
        """Of nothing yet."""
        return cls(np.zeros(classes, np.int64), np.zeros(classes, np.int64))

    def add(self, classes: NDArray, top: NDArray[np.bool_]) -> None:
        """Count tokens of the given classes, in arrays of one shape."""
        size = len(self.count)
        self.count[:] += np.bincount(classes.ravel(), minlength=size)
        self.top_count[:] += np.bincount(classes[top], minlength=size)

    @property
    def share(self) -> NDArray[np.float64]:
        """(K,) share of each class among all tokens."""
        return self.count / max(int(self.count.sum()), 1)

    @property
    def top_share(self) -> NDArray[np.float64]:
        """(K,) share of each class among the top."""
        return self.top_count / max(int(self.top_count.sum()), 1)


def top_of_each_place(delta: NDArray, share: float) -> NDArray[np.bool_]:
    """The `share` of the tokens at each place that gain most.

    The gain of a longer window depends on the place: beyond the window of the base model every
    token gains. Ranked within its place, a token is only compared with those that had as much text
    before them.

    Args:
        delta: (N, C) gain of the token at place c of sample n.
        share: between 0 and 1; rounded down to whole tokens. Of equals the first sample's is taken.

    Returns:
        (N, C) bool.
    """
    chosen = int(share * len(delta) + 1e-9)
    order = np.argsort(-delta, axis=0, kind="stable")[:chosen]
    top = np.zeros(delta.shape, bool)
    np.put_along_axis(top, order, True, axis=0)
    return top


def count_top(
    input_ids: NDArray,
    top: Callable[[slice], NDArray[np.bool_]],
    first: int,
    vocab_size: int,
    tags: NDArray | None = None,
    num_tags: int = 0,
) -> tuple[Counts, Counts]:
    """Count token types and parts of speech, in as much memory as N rows of some columns need.

    Args:
        input_ids: (N, S) ids below `vocab_size`.
        top: (N, C) bool for a slice of C places.
        first: the places before it are not ranked: nothing predicts them, or all are equal.
        tags: (N, S) below `num_tags`, or None.

    Returns:
        Of token types, and of tags (all 0 without tags).
    """
    types, parts = Counts.of(vocab_size), Counts.of(num_tags)
    for places in column_blocks(len(input_ids), first, input_ids.shape[1]):
        chosen = top(places)
        types.add(input_ids[:, places], chosen)
        if tags is not None:
            parts.add(tags[:, places], chosen)
    return types, parts


def gains(
    input_ids: NDArray, delta: Callable[[slice], NDArray], first: int, vocab_size: int
) -> NDArray[np.float64]:
    """(V,) delta(t) of LongRecipe, 3.1: the sum of what a token type gains, signed."""
    total = np.zeros(vocab_size)
    for places in column_blocks(len(input_ids), first, input_ids.shape[1]):
        ids = input_ids[:, places].ravel()
        total += np.bincount(ids, delta(places).ravel().astype(np.float64), minlength=vocab_size)
    return total
