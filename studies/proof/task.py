"""Quoting: random tokens, and at the end quotes of spans that stood earlier.

A quote is a mark, a few tokens that say which span is meant (the cue), and the tokens that follow
there. A model can only predict those by finding the span, however far back it stands: chance is one
in the vocabulary. Two layers of attention can learn it (an induction head, Olsson et al.,
2209.11895).
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

VOCAB = 64
MARK = 0
CUE = 3
SPAN = 16
"""Tokens of a quote with its mark; also of a segment, where positions may jump."""
QUOTED_SHARE = 0.5


class Quotes(NamedTuple):
    """A batch of B samples of S tokens.

    Attributes:
        input_ids: (B, S) int64.
        labels: (B, S) int64: the quoted tokens behind each cue, -100 elsewhere.
        depth: (B, S) float: where the quoted token stands in the text before the quotes, 0 to 1.
    """

    input_ids: Tensor
    labels: Tensor
    depth: Tensor


def quotes(batch: int, length: int, generator: Generator) -> Quotes:
    """Samples whose second half quotes spans of the first, drawn uniformly."""
    num_quotes = max(1, int(length * QUOTED_SHARE) // SPAN)
    body = length - num_quotes * SPAN
    input_ids = torch.randint(1, VOCAB, (batch, length), generator=generator)
    starts = torch.randint(0, body - SPAN + 2, (batch, num_quotes, 1), generator=generator)
    source = starts + torch.arange(SPAN - 1)
    quoted = input_ids.gather(1, source.flatten(1)).view(batch, num_quotes, SPAN - 1)
    marks = torch.full((batch, num_quotes, 1), MARK)
    input_ids[:, body:] = torch.cat([marks, quoted], 2).flatten(1)
    labels = torch.full_like(input_ids, -100)
    behind_cue = torch.arange(SPAN) > CUE
    labels[:, body:] = input_ids[:, body:].where(behind_cue.repeat(num_quotes), -100)
    depth = torch.zeros(batch, length)
    depth[:, body:] = torch.cat([torch.zeros_like(starts), source], 2).flatten(1) / body
    return Quotes(input_ids, labels, depth)


def segment_lengths(length: int) -> Tensor:
    """The segments of a sample: SPAN tokens each, the first one what is left over."""
    whole, rest = divmod(length, SPAN)
    return torch.tensor(([rest] if rest else []) + [SPAN] * whole)
