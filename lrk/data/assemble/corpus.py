"""The corpus: texts of prepared documents and their chunks, read where they lie."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import groupby, pairwise

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from lrk.data.assemble.bm25 import Tokens
from lrk.data.assemble.parts import Layout, Part

# Documents that are read at once.
_BATCH = 256


@dataclass(frozen=True)
class Units:
    """Parts of documents that an index holds.

    Attributes:
        documents: prepared.
        parts: by document, then by place.
    """

    documents: Dataset
    parts: list[Part]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Tokens]:
        """Their token ids, in one pass over the documents."""
        documents = enumerate(rows(self.documents, "input_ids"))
        for document, parts in groupby(self.parts, key=lambda part: part.document):
            ids = next(ids for number, ids in documents if number == document)
            for part in parts:
                yield ids[part.start : part.stop]

    def ids(self, part: Part) -> Tokens:
        """(S,) the token ids of a part."""
        return self._numpy[part.document]["input_ids"][part.start : part.stop]

    @cached_property
    def _numpy(self) -> Dataset:
        return self.documents.select_columns(["input_ids"]).with_format("numpy")


@dataclass(frozen=True)
class Corpus:
    """What samples are made of.

    Attributes:
        texts: documents without their special tokens; of equal ones the first.
        chunks: of each text, where chunks were asked for; those of a text that is one chunk too.
        duplicates: how many documents are left out because they equal an earlier one.
        num_documents: that were read.
    """

    texts: list[Part]
    chunks: list[list[Part]]
    duplicates: int
    num_documents: int

    @property
    def num_tokens(self) -> int:
        """Of the texts."""
        return sum(text.tokens for text in self.texts)


def read_corpus(documents: Dataset, layout: Layout, chunk_tokens: int | None = None) -> Corpus:
    """Read all documents once.

    A document that is there twice would be its own nearest neighbour, from which nothing but
    copying can be learnt.
    """
    texts, chunks, seen = [], [], set()
    lengths = rows(documents, "segment_lengths")
    for number, ids in enumerate(rows(documents, "input_ids")):
        segments = next(lengths)
        text = layout.text(number, ids)
        content = blake2b(ids[text.start : text.stop].tobytes(), digest_size=16).digest()
        if content in seen or text.tokens == 0:
            continue
        seen.add(content)
        texts.append(text)
        if chunk_tokens is not None:
            chunks.append(cut(text, segments, chunk_tokens))
    duplicates = len(documents) - len(texts)
    return Corpus(texts, chunks, duplicates, len(documents))


def cut(text: Part, segment_lengths: NDArray[np.integer], chunk_tokens: int) -> list[Part]:
    """The chunks of a text: as many as it has `chunk_tokens`, rounded up, and about equally long.

    Args:
        segment_lengths: (N,) of the document; a chunk ends where a segment does, at the nearest.
    """
    count = -(-text.tokens // chunk_tokens)
    ends = np.cumsum(segment_lengths)
    ends = ends[(ends > text.start) & (ends < text.stop)]
    places = text.start + np.arange(1, count) * text.tokens / count
    if len(ends):
        after = np.searchsorted(ends, places).clip(1, max(len(ends) - 1, 1))
        left, right = ends[after - 1], ends[np.minimum(after, len(ends) - 1)]
        places = np.unique(np.where(places - left <= right - places, left, right))
    else:
        places = places[:0]
    bounds = [text.start, *places.tolist(), text.stop]
    return [Part(text.document, start, stop) for start, stop in pairwise(bounds)]


def rows(documents: Dataset, column: str) -> Iterator[NDArray[np.int32]]:
    """The lists of a column, mapped, in order."""
    table = documents.select_columns([column]).with_format("arrow")
    for batch in table.iter(batch_size=_BATCH):
        for lists in batch[column].chunks:
            values = lists.values.to_numpy()
            for start, stop in pairwise(lists.offsets.to_numpy().tolist()):
                yield values[start:stop]
