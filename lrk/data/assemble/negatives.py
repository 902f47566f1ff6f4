"""Hard negatives: a document whose parts lie far apart (NExtLong, 2501.12766).

A document is cut into chunks, and between each and the next stand chunks of other documents that
are nearest to it by BM25: alike, but not how it goes on. The first chunk opens the sample and the
last one closes it, so that they lie as far apart as the sample allows.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from lrk.data.assemble.bm25 import Bm25
from lrk.data.assemble.corpus import Units
from lrk.data.assemble.parts import Part, Plan, fill


def can_open(chunks: Sequence[Part], room: int, between: int) -> bool:
    """Whether there is a gap, half of the sample is left to negatives, and each gap holds one."""
    gaps, tokens = len(chunks) - 1, sum(chunk.tokens for chunk in chunks)
    # A gap of one negative has `between` on both sides of it.
    return gaps > 0 and 2 * tokens <= room and room - tokens >= gaps * (2 * between + 1)


def plans(
    units: Units, index: Bm25, openers: Iterable[Sequence[Part]], room: int, between: int
) -> Iterator[Plan]:
    """A sample for each opener; a chunk is once in a sample, and may be in several.

    Args:
        units: the chunks of all documents, those of the openers too.
        index: of the units.
        openers: the chunks of documents that `can_open`.
        room: tokens of the parts of a sample and what is between them.
        between: tokens between two parts.
    """
    documents = np.array([part.document for part in units.parts])
    for chunks in openers:
        allowed = documents != chunks[0].document
        gaps = len(chunks) - 1
        left = room - sum(chunk.tokens for chunk in chunks) - gaps * between
        parts, scored = [chunks[0]], [False]
        for number, (chunk, following) in enumerate(pairwise(chunks)):
            size = left // (gaps - number)
            left -= size
            nearest = index.nearest(units.ids(chunk), allowed)
            negatives = fill(nearest, units.parts, size, between)
            if negatives is None:
                break
            allowed[[unit for unit, _ in negatives]] = False
            parts += [*(part for _, part in negatives), following]
            scored += [*[False] * len(negatives), True]
        else:
            yield Plan(parts, scored)
