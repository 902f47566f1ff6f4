"""Samples: every one has exactly the same number of real tokens, and none of them is padding.

A document of at least that length is cut into samples of its own. What is left of it, and shorter
documents, are packed: laid end to end and cut into samples. A packed sample keeps the boundaries of
its documents, across which nothing is attended to or predicted.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from lrk.recipe.segments import clip_segments


class Sample(TypedDict):
    """One sample of S tokens.

    Attributes:
        index: its number in the set.
        input_ids: (S,) int64.
        segment_lengths: for each document of the sample a tensor (N,); they sum to S in all.
        is_label: (S,) bool, which tokens are predicted; absent where all are.
    """

    index: int
    input_ids: Tensor
    segment_lengths: list[Tensor]
    is_label: NotRequired[Tensor]


class Piece(NamedTuple):
    """A stretch of one document: tokens (S,) int64, segments (N,) that sum to S, labels (S,)."""

    input_ids: Tensor
    segment_lengths: Tensor
    is_label: Tensor | None


class Samples(torch.utils.data.Dataset[Sample]):
    """Samples of `length` tokens, cut out of tokenized documents when they are read.

    Args:
        documents: from `tokenize`.
        length: tokens in a sample, at least 2.
        pack: also make samples of short documents and of the ends of long ones. Without, each
            sample lies within one document.

    Attributes:
        num_tokens: tokens in all samples.
        num_unused_tokens: tokens that are in no sample: less than one sample if `pack`.
        num_packed: how many samples hold more than one document.

    Raises:
        ValueError: if the documents do not fill one sample.
    """

    def __init__(self, documents: Dataset, length: int, pack: bool = True) -> None:
        if length < 2:
            raise ValueError(f"length is {length}; a sample needs at least 2 tokens")
        self.length = length
        self._documents = documents.with_format("numpy")
        lengths = _document_lengths(documents)
        whole = _whole_pieces(lengths, length)
        pieces = np.concatenate([whole, _packed_pieces(lengths, length)]) if pack else whole
        if len(pieces) == 0:
            longest = int(lengths.max(initial=0))
            raise ValueError(too_short(len(lengths), int(lengths.sum()), longest, length, pack))
        self._pieces = pieces
        # Samples hold `length` tokens each, so the running total of the pieces tells whose each is.
        self._sample_of_piece = (np.cumsum(pieces[:, 2]) - 1) // length
        self.num_tokens = int(pieces[:, 2].sum())
        self.num_unused_tokens = int(lengths.sum()) - self.num_tokens
        self.num_packed = int((np.bincount(self._sample_of_piece) > 1).sum())

    def __len__(self) -> int:
        return self.num_tokens // self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        first, last = np.searchsorted(self._sample_of_piece, [index, index + 1])
        pieces = [
            piece_of(self._documents[document], start, length)
            for document, start, length in self._pieces[first:last].tolist()
        ]
        return sample_of(index, pieces)


def piece_of(document: Mapping[str, NDArray], start: int, length: int) -> Piece:
    """Tokens `[start, start + length)` of a tokenized document, copied."""
    taken = slice(start, start + length)
    segments = clip_segments(document["segment_lengths"], start, length)
    return Piece(
        torch.from_numpy(document["input_ids"][taken]).long(),
        torch.from_numpy(segments),
        torch.from_numpy(document["is_label"][taken]).clone() if "is_label" in document else None,
    )


def sample_of(index: int, pieces: Sequence[Piece]) -> Sample:
    """Lay pieces end to end."""
    sample: Sample = {
        "index": index,
        "input_ids": torch.cat([piece.input_ids for piece in pieces]),
        "segment_lengths": [piece.segment_lengths for piece in pieces],
    }
    is_label = [piece.is_label for piece in pieces if piece.is_label is not None]
    return {**sample, "is_label": torch.cat(is_label)} if is_label else sample


def _document_lengths(documents: Dataset) -> NDArray[np.int64]:
    table = documents.with_format("arrow").select_columns(["input_ids"])
    parts = [
        batch["input_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        for batch in table.iter(batch_size=1000)
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _whole_pieces(lengths: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """(P, 3) rows of document, start, length: the samples that lie within one document."""
    counts = lengths // length
    document = np.repeat(np.arange(len(lengths)), counts)
    first_sample = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(document)) - first_sample) * length
    return np.stack([document, start, np.full_like(document, length)], axis=1)


def _packed_pieces(lengths: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """(P, 3) as above: what is left of the documents, end to end, cut at multiples of `length`.

    The tokens after the last multiple do not fill a sample and are left out.
    """
    left = lengths % length
    ends = np.cumsum(left)
    total = int(ends[-1]) // length * length if len(ends) else 0
    cuts = np.union1d(ends[(ends > 0) & (ends < total)], np.arange(length, total + 1, length))
    starts = np.concatenate([[0], cuts[:-1]])[: len(cuts)]
    document = np.searchsorted(ends, starts, side="right")
    start_in_document = (lengths - left)[document] + starts - (ends - left)[document]
    return np.stack([document, start_in_document, cuts - starts], axis=1)


def too_short(documents: int, tokens: int, longest: int, length: int, pack: bool) -> str:
    """The sentence for documents that do not fill one sample."""
    if pack:
        return (
            f"the {documents:,} documents hold {tokens:,} tokens together, but one "
            f"sample of train_length needs {length:,}"
        )
    return (
        f"the longest of {documents:,} documents has {longest:,} tokens, "
        f"but a sample that is not packed needs train_length {length:,}"
    )
