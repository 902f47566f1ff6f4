"""What the tiny model learns: random tokens in which only what stood before can be predicted.

In a *quoting* sample the second half quotes spans of the first. A quote is a mark, a few tokens
that say which span is meant (the cue), and the tokens that follow there. A model can only predict
those by finding the span, however far back it stands; a guess is right once in 63 times. Two layers
of attention can learn it: the first writes into every token which tokens stand before it, the
second looks for the ones that the cue names (an induction head, Olsson et al., 2209.11895).

A *cycle* sample walks around a few tokens in an order of its own and sometimes jumps. It asks for
the same heads, but each step recurs many times, so that the heads form within minutes. Quotes alone
taught this model nothing in 1,500 steps.

In a *variables* sample the first two thirds give values to variables, again and again, and the
last third asks for each of them. A name occurs with each value that it ever had, and only the order
of these places says which one holds: the model has to tell the latest from the others, at any
distance. One that finds a name and copies what follows is right as often as a guess among its
values.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

VOCAB = 64
MARK = 0
CUE = 3
SPAN = 16
"""Tokens of a quote with its mark; also of a segment, at whose end positions may jump."""
STATEMENT = 4
"""Tokens that say the value of a variable: a mark, two for its name, the value."""
WRITES = 2
"""Values that a variable gets, on average."""
SHORTEST_CYCLE, LONGEST_CYCLE = 8, 32
JUMP = 0.15


class Batch(NamedTuple):
    """B samples of S tokens.

    Attributes:
        input_ids: (B, S) int64.
        labels: (B, S) int64: the tokens that can be predicted, -100 elsewhere.
        depth: (B, S) float: of a label, where in the part before all labels the token stands that
            it repeats, 0 to 1; 0 elsewhere.
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


def variables(batch: int, length: int, generator: Generator) -> Batch:
    """Samples that set variables, each at least once, and then tell the value that each has."""
    count = length // STATEMENT // (WRITES + 1)
    writes = length // STATEMENT - count
    pairs = torch.rand(batch, (VOCAB - 1) ** 2, generator=generator).argsort(1)[:, :count]
    names = 1 + torch.stack([pairs // (VOCAB - 1), pairs % (VOCAB - 1)], 2)
    again = torch.randint(0, count, (batch, writes - count), generator=generator)
    written = torch.cat([torch.arange(count).expand(batch, count), again], 1)
    written = written.gather(1, torch.rand(batch, writes, generator=generator).argsort(1))
    values = torch.randint(1, VOCAB, (batch, writes), generator=generator)
    order = torch.arange(writes).expand(batch, writes)
    latest = torch.zeros(batch, count, dtype=torch.int64).scatter_reduce(1, written, order, "amax")
    read = torch.rand(batch, count, generator=generator).argsort(1)
    source = latest.gather(1, read)
    told = values.gather(1, source)

    def statements(which: Tensor, value: Tensor) -> Tensor:
        name = names.gather(1, which[..., None].expand(-1, -1, 2))
        return torch.cat([torch.full_like(value, MARK)[..., None], name, value[..., None]], 2)

    text = torch.cat([statements(written, values), statements(read, told)], 1).flatten(1)
    rest = length - text.shape[1]
    input_ids = torch.cat([torch.full((batch, rest), MARK), text], 1)
    places = rest + STATEMENT * torch.arange(writes, writes + count) + STATEMENT - 1
    labels = torch.full_like(input_ids, -100)
    labels[:, places] = told
    depth = torch.zeros(batch, length)
    depth[:, places] = source / writes
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


TASKS: dict[str, Callable[[int, int, Generator], Batch]] = {
    "quotes": quotes,
    "variables": variables,
}
"""What extended models are asked, and trained on in equal parts."""


def mixed(batch: int, length: int, turn: int, generator: Generator) -> Batch:
    """Samples of all tasks; what does not divide evenly goes round, by `turn`."""
    parts = [
        task((batch + (number + turn) % len(TASKS)) // len(TASKS), length, generator)
        for number, task in enumerate(TASKS.values())
    ]
    return Batch(*map(torch.cat, zip(*parts, strict=True)))


def segment_lengths(length: int) -> Tensor:
    """The segments of a sample: SPAN tokens each, the first one what is left over."""
    whole, rest = divmod(length, SPAN)
    return torch.tensor(([rest] if rest else []) + [SPAN] * whole)
