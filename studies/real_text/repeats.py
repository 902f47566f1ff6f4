"""Text that quotes itself, from which so small a model learns to look back.

Text alone taught this model its words and next to no looking back: see studies/log.md. As in
`studies.proof.task`, what repeats often forms the heads that find what stood before (Olsson et al.,
2209.11895) within minutes; here it is real text that repeats.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

SHORTEST, LONGEST = 4, 32
"""Tokens of a quote."""
CUE = 2
"""Its first tokens, which nothing foretells."""


class Batch(NamedTuple):
    """B samples of S tokens: input_ids and labels, (B, S) int64, -100 where nothing is learned."""

    input_ids: Tensor
    labels: Tensor


def repeats(text: Tensor, generator: Generator) -> Batch:
    """Samples that begin with an eighth to a half of the text and then quote spans of it.

    Args:
        text: (B, S) int64.
    """
    rows = [_repeats(row, generator) for row in text]
    return Batch(*map(torch.stack, zip(*rows, strict=True)))


def _repeats(text: Tensor, generator: Generator) -> Batch:
    size = len(text)
    body = _uniform(max(LONGEST, size // 8), max(LONGEST, size // 2), generator)
    places, labelled = [torch.arange(body)], [torch.ones(body)]
    filled = body
    while filled < size:
        count = _uniform(SHORTEST, min(LONGEST, body), generator)
        start = _uniform(0, body - count, generator)
        places.append(torch.arange(start, start + count))
        labelled.append((torch.arange(count) >= CUE).float())
        filled += count
    input_ids = text[torch.cat(places)[:size]]
    return Batch(input_ids, input_ids.where(torch.cat(labelled)[:size] > 0, -100))


def _uniform(first: int, last: int, generator: Generator) -> int:
    return int(torch.randint(first, last + 1, (), generator=generator))
