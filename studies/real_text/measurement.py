"""What a model makes of the held-out documents, in ordinary positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from studies.real_text.corpus import Corpus, Document
from studies.real_text.names import asked_names
from studies.real_text.scale import Scale


class Reading(NamedTuple):
    """Of every token of a document but the first: (S - 1,) its loss in nats, and whether it is the
    one that the model thinks most likely."""

    loss: Tensor
    right: Tensor


@dataclass(frozen=True)
class Measured:
    """Of each document and bucket, so that means over any of them can be taken.

    A bucket is of positions, or of distances, between two of `Scale.edges`; how many tokens are
    asked for is the same for all models and in `Questions.counts`.

    Attributes:
        loss: (documents, buckets of positions), mean nats a token.
        short_loss: (documents,) of the first quarter of the tokens, in pieces of the window.
        right: (documents, buckets of distances), tokens of names that are predicted right.
        name_loss: the same, sum of nats.
        first_right, first_name_loss: the same of the same tokens where the names stood first.
    """

    loss: list[list[float]]
    short_loss: list[float]
    right: list[list[int]]
    name_loss: list[list[float]]
    first_right: list[list[int]]
    first_name_loss: list[list[float]]


class _Places(NamedTuple):
    """Of every token that is asked for: where it stands, stood first, and the bucket; (N,) each."""

    places: Tensor
    before: Tensor
    buckets: Tensor


class Questions:
    """The held-out documents and the names that are asked for in them.

    Attributes:
        counts: (documents, buckets), tokens of names that are asked for, by distance.
    """

    def __init__(self, corpus: Corpus, scale: Scale) -> None:
        self.documents = corpus.held_out
        self.edges = torch.tensor(scale.edges)
        self.window = scale.window
        self._places = []
        for document in self.documents:
            names = asked_names(document, corpus.tokenizer)
            places = torch.tensor([n for name in names for n in name.places]).long()
            before = torch.tensor([n for name in names for n in name.before]).long()
            self._places.append(_Places(places, before, self._bucket(places - before)))
        self.counts = [
            [round(n) for n in self._sums(torch.ones(len(each.buckets)), each.buckets)]
            for each in self._places
        ]

    def asked_of(self, model: LlamaForCausalLM) -> Measured:
        """Of a model that reads in ordinary positions."""
        return self._measured([read(model, document) for document in self.documents], model)

    def asked_within(self, model: LlamaForCausalLM) -> Measured:
        """The same of a model that sees no more than its window, and at least half of it."""
        readings = [read_within(model, document, self.window) for document in self.documents]
        return self._measured(readings, model)

    def _measured(self, readings: Sequence[Reading], model: LlamaForCausalLM) -> Measured:
        found = Measured([], [], [], [], [], [])
        for document, reading, asked in zip(self.documents, readings, self._places, strict=True):
            positions = self._bucket(torch.arange(1, len(document.tokens)))
            sums = torch.tensor(self._sums(reading.loss, positions))
            tokens = torch.tensor(self._sums(torch.ones_like(reading.loss), positions))
            found.loss.append([round(each, 5) for each in (sums / tokens).tolist()])
            found.short_loss.append(round(short_loss(model, document, self.window), 5))
            for places, right, loss in (
                (asked.places, found.right, found.name_loss),
                (asked.before, found.first_right, found.first_name_loss),
            ):
                hits = self._sums(reading.right[places - 1], asked.buckets)
                right.append([round(n) for n in hits])
                nats = self._sums(reading.loss[places - 1], asked.buckets)
                loss.append([round(each, 3) for each in nats])
        return found

    def _bucket(self, values: Tensor) -> Tensor:
        return torch.bucketize(values, self.edges, right=True).clamp(max=len(self.edges) - 1) - 1

    def _sums(self, values: Tensor, buckets: Tensor) -> list[float]:
        sums = torch.zeros(len(self.edges) - 1, dtype=torch.float64)
        return sums.index_add(0, buckets, values.double()).tolist()


@torch.no_grad()
def read(model: LlamaForCausalLM, document: Document) -> Reading:
    """A document from its start to its end, all before in view."""
    return _reading(model.eval(), document.tokens[None])[0]


@torch.no_grad()
def read_within(model: LlamaForCausalLM, document: Document, window: int) -> Reading:
    """The same tokens, each with window / 2 to window tokens in view, the first ones with fewer."""
    pieces = document.tokens.unfold(0, window, window // 2)
    readings = [_reading(model.eval(), pieces[n : n + 8]) for n in range(0, len(pieces), 8)]
    rows = [row for reading in readings for row in reading]
    rest = [Reading(*(part[window // 2 - 1 :] for part in row)) for row in rows[1:]]
    return Reading(*map(torch.cat, zip(rows[0], *rest, strict=True)))


@torch.no_grad()
def short_loss(model: LlamaForCausalLM, document: Document, window: int) -> float:
    """Mean nats a token of the first quarter of a document, cut into pieces of the window."""
    pieces = document.tokens[: len(document.tokens) // 4 // window * window].view(-1, window)
    return torch.stack([row.loss.mean() for row in _reading(model.eval(), pieces)]).mean().item()


def _reading(model: LlamaForCausalLM, input_ids: Tensor) -> list[Reading]:
    """Of each row of (B, S)."""
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    following = input_ids[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), following.flatten(), reduction="none"
    ).view_as(following)
    right = logits.argmax(-1) == following
    return [Reading(*row) for row in zip(losses, right, strict=True)]
