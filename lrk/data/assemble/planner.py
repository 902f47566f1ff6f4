"""The planner: which documents open samples, in a random order, and what fills them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from datasets import Dataset

from lrk.data.assemble import negatives, neighbours
from lrk.data.assemble.arguments import NEGATIVES, Assembly
from lrk.data.assemble.bm25 import Bm25
from lrk.data.assemble.corpus import Corpus, Units
from lrk.data.assemble.parts import Layout, Part, Plan


@dataclass(frozen=True)
class Planner:
    """Plans the samples of a corpus.

    Attributes:
        units: what is indexed: texts that are too short for a sample of their own, or chunks.
        openers: for negatives, the chunks of each document that may open a sample.
        room, between: tokens of the parts of a sample with what is between them, and of that.
        samples: at most; None for as many as the units fill.
        seed: of the order.
        vocab_size: of the token ids.
    """

    units: Units
    openers: list[list[Part]]
    room: int
    between: int
    samples: int | None
    seed: int
    vocab_size: int

    def plans(self) -> Iterator[Plan]:
        """The samples; the first one comes when the units are indexed."""
        generator = np.random.default_rng(self.seed)
        order = generator.permutation(len(self.units))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        index = Bm25(self.units, len(self.units), self.vocab_size, rank)
        if self.openers:
            openers = (self.openers[i] for i in generator.permutation(len(self.openers)))
            found = negatives.plans(self.units, index, openers, self.room, self.between)
        else:
            found = neighbours.plans(self.units, index, order.tolist(), self.room, self.between)
        yield from islice(found, self.samples)


def planner_of(
    assembly: Assembly, documents: Dataset, corpus: Corpus, layout: Layout, vocab_size: int
) -> Planner:
    """The planner that arguments ask for.

    Raises:
        ValueError: if the documents do not fill a sample, or none can be cut for negatives.
    """
    room, between = layout.room(assembly.target_length), len(layout.between)
    openers: list[list[Part]] = []
    if assembly.method == NEGATIVES:
        parts = list(chain.from_iterable(corpus.chunks))
        openers = [each for each in corpus.chunks if negatives.can_open(each, room, between)]
        if not openers:
            raise ValueError(
                f"none of the {len(corpus.texts):,} documents has more than chunk_tokens "
                f"{assembly.chunk_size} and at most half of target_length "
                f"{assembly.target_length}, so none can be cut into chunks that lie far apart"
            )
    else:
        parts = [text for text in corpus.texts if text.tokens < room - between]
    tokens = sum(part.tokens for part in parts)
    if tokens < room:
        raise ValueError(
            f"the {len(corpus.texts):,} documents hold {tokens:,} tokens together in texts that "
            f"can be assembled, but one sample of target_length needs {assembly.target_length:,}"
        )
    samples = assembly.samples
    if assembly.method == NEGATIVES and samples is None:
        samples = corpus.num_tokens // assembly.target_length or 1
    return Planner(
        Units(documents, parts), openers, room, between, samples, assembly.seed, vocab_size
    )
