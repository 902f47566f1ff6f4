"""Neighbours: documents about the same thing, one behind the other (LiteLong, 2509.15568).

LiteLong has language models draw up topics and retrieves documents for each by BM25. Here a
document is the topic: each one that is not used yet opens a sample, in a random order, and its
nearest unused ones fill it. The nearest stands last, so that what belongs together most lies
farthest apart.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lrk.data.assemble.bm25 import Bm25
from lrk.data.assemble.corpus import Units
from lrk.data.assemble.parts import Plan, fill


def plans(
    units: Units, index: Bm25, order: Sequence[int], room: int, between: int
) -> Iterator[Plan]:
    """Samples, until what is left does not fill another one; no unit is in two.

    Args:
        units: texts of less than `room - between` tokens.
        index: of the units.
        order: in which they open samples.
        room: tokens of the parts of a sample and what is between them.
        between: tokens between two parts.
    """
    unused = np.ones(len(units), bool)
    for opener in order:
        if not unused[opener]:
            continue
        unused[opener] = False
        first = units.parts[opener]
        nearest = index.nearest(units.ids(first), unused)
        behind = fill(nearest, units.parts, room - first.tokens, between)
        if behind is None:
            return
        unused[[unit for unit, _ in behind]] = False
        yield Plan([first, *(part for _, part in reversed(behind))], [False, *[True] * len(behind)])
