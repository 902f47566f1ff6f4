"""What the tiny model learns: random tokens in which only what stood before can be predicted.

In a *quoting* sample the second half quotes spans of the first. A quote is a mark, a few tokens
that say which span is meant (the cue), and the tokens that follow there. A model can only predict
those by finding the span, however far back it stands; a guess is right once in 63 times. Two layers
of attention can learn it: the first writes into every token which tokens stand before it, the
second looks for the ones that the cue names (an induction head, Olsson et al., 2209.11895).

A *cycle* sample walks around a few tokens in an order of its own and sometimes jumps. It asks for
the same heads, but each step recurs many times, so that the heads form within minutes. Quotes alone
taught this model nothing in 1,500 steps.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

VOCAB = 64
MARK = 0
CUE = 3
SPAN = 16
"""Tokens of a quote with its mark; also of a segment, at whose end positions may jump."""
SHORTEST_CYCLE, LONGEST_CYCLE = 8, 32
JUMP = 0.15


class Batch(NamedTuple):
    """B samples of S tokens.

    Attributes:
        input_ids: (B, S) int64.
        labels: (B, S) int64: the tokens that can be predicted, -100 elsewhere.
        depth: (B, S) float: where in the first half a quoted token stands, 0 to 1; 0 elsewhere.
    """

    input_ids: Tensor
    labels: Tensor
    depth: Tensor


def quotes(batch: int, length: int, generator: Generator) -> Batch:
    """Samples whose second half quotes spans of the first, drawn uniformly."""
    num_quotes = length // 2 // SPAN
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
    return Batch(input_ids, labels, depth)


def cycles(batch: int, length: int, generator: Generator) -> Batch:
    """Samples that walk around a cycle of 8 to 32 tokens; labels from the second quarter on."""
    sizes = torch.randint(SHORTEST_CYCLE, LONGEST_CYCLE + 1, (batch, 1), generator=generator)
    tokens = 1 + torch.rand(batch, VOCAB - 1, generator=generator).argsort(1)
    jumps = torch.rand(batch, length, generator=generator) < JUMP
    places = (torch.rand(batch, length, generator=generator) * sizes).long()
    # Where a walk is: the place of its last jump, and one further for every token since.
    last_jump = torch.where(jumps, torch.arange(length), 0).cummax(1).values
    walk = (places.gather(1, last_jump) + torch.arange(length) - last_jump) % sizes
    input_ids = tokens.gather(1, walk)
    labels = input_ids.masked_fill(jumps, -100)
    labels[:, : length // 4] = -100
    return Batch(input_ids, labels, torch.zeros(batch, length))


def segment_lengths(length: int) -> Tensor:
    """The segments of a sample: SPAN tokens each, the first one what is left over."""
    whole, rest = divmod(length, SPAN)
    return torch.tensor(([rest] if rest else []) + [SPAN] * whole)
