"""Samples: every one has exactly the same number of real tokens, and none of them is padding.

A document of at least that length is cut into samples of its own; with a selection each of them is
chosen from a stretch of up to the target's length. What is left of it, and shorter documents, are
packed: laid end to end and cut into samples. A packed sample keeps the boundaries of its documents,
across which nothing is attended to or predicted.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from lrk.recipe.fingerprint import documents_fingerprint
from lrk.recipe.segments import clip_segments
from lrk.recipe.selection import POSITIONS, Choice, Selection


class Sample(TypedDict):
    """One sample of S tokens; more than that where `Placement` chooses the text.

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
        documents: from `tokenize` or `open_prepared`.
        length: tokens in a sample, at least 2.
        pack: also make samples of short documents and of the ends of long ones. Without, each
            sample lies within one document.
        selection: choose each sample's text from up to `selection.span` tokens of a document. None
            takes `length` tokens that follow one another.

    Attributes:
        num_tokens: tokens in all samples.
        num_unselected_tokens: tokens that the selection leaves out.
        num_unused_tokens: other tokens that are in no sample: less than one sample if `pack`.
        num_packed: how many samples hold more than one document.

    Raises:
        ValueError: if the documents do not fill one sample, or the selection's span is below
            `length`.
    """

    def __init__(
        self,
        documents: Dataset,
        length: int,
        pack: bool = True,
        selection: Selection | None = None,
    ) -> None:
        check_length(length, selection)
        self.length = length
        self.selection = selection
        self._documents = documents.with_format("numpy")
        lengths = document_lengths(documents)
        alone, left = _pieces_alone(lengths, length, span_of(length, selection))
        pieces = np.concatenate([alone, _packed_pieces(lengths, left, length)]) if pack else alone
        if len(pieces) == 0:
            longest = int(lengths.max(initial=0))
            raise ValueError(too_short(len(lengths), int(lengths.sum()), longest, length, pack))
        self._pieces = pieces
        # Samples hold `length` tokens each, so the running total of the pieces tells whose each is.
        kept = np.minimum(pieces[:, 2], length)
        self._sample_of_piece = (np.cumsum(kept) - 1) // length
        self.num_tokens = int(kept.sum())
        self.num_unselected_tokens = int(pieces[:, 2].sum()) - self.num_tokens
        self.num_unused_tokens = int(lengths.sum() - pieces[:, 2].sum())
        self.num_packed = int((np.bincount(self._sample_of_piece) > 1).sum())

    def __len__(self) -> int:
        return self.num_tokens // self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        first, last = np.searchsorted(self._sample_of_piece, [index, index + 1])
        pieces = [
            piece_of(self._documents[document], document, start, size, self.length, self.selection)
            for document, start, size in self._pieces[first:last].tolist()
        ]
        return sample_of(index, pieces)

    def fingerprint(self) -> str:
        """Of the documents."""
        return documents_fingerprint(self._documents)

    def choice(self, index: int) -> tuple[int, Choice] | None:
        """How many tokens the text of a sample is chosen from, and which; None where it is not."""
        document, start, size = self._pieces[np.searchsorted(self._sample_of_piece, index)].tolist()
        row = self._documents[document]
        choice = choice_of(row, document, start, size, self.length, self.selection)
        return None if len(choice.tokens) == size else (size, choice)


def check_length(length: int, selection: Selection | None) -> None:
    """Refuse a sample of fewer than 2 tokens, or one that is longer than what it is chosen from."""
    if length < 2:
        raise ValueError(f"length is {length}; a sample needs at least 2 tokens")
    if selection is not None and selection.span < length:
        raise ValueError(f"the selection's span is {selection.span}, below length {length}")


def span_of(length: int, selection: Selection | None) -> int:
    """Tokens of a document that make one sample."""
    return length if selection is None else selection.span


def piece_of(
    document: Mapping[str, NDArray],
    number: int,
    start: int,
    size: int,
    length: int,
    selection: Selection | None,
) -> Piece:
    """Tokens `[start, start + size)` of a tokenized document, or the `length` chosen of them.

    Tensors are copies, so that what is kept does not hold the document.

    Args:
        number: of the document, for the draw of the selection.
    """
    choice = choice_of(document, number, start, size, length, selection)
    tokens = start + choice.tokens
    return Piece(
        torch.from_numpy(document["input_ids"][tokens]).long(),
        torch.from_numpy(choice.segment_lengths),
        torch.from_numpy(document["is_label"][tokens]) if "is_label" in document else None,
    )


def choice_of(
    document: Mapping[str, NDArray],
    number: int,
    start: int,
    size: int,
    length: int,
    selection: Selection | None,
) -> Choice:
    """As `piece_of`: all tokens where there is nothing to choose, or `Placement` does."""
    segments = clip_segments(document["segment_lengths"], start, size)
    if selection is None or selection.rule == POSITIONS or size <= length:
        return Choice(np.arange(size), segments, num_qualifying=size, num_filled=0)
    token_ids = document["input_ids"][start : start + size]
    return selection.choose(token_ids, segments, length, (number, start))


def sample_of(index: int, pieces: Sequence[Piece]) -> Sample:
    """Lay pieces end to end."""
    sample: Sample = {
        "index": index,
        "input_ids": torch.cat([piece.input_ids for piece in pieces]),
        "segment_lengths": [piece.segment_lengths for piece in pieces],
    }
    is_label = [piece.is_label for piece in pieces if piece.is_label is not None]
    return {**sample, "is_label": torch.cat(is_label)} if is_label else sample


def document_lengths(documents: Dataset) -> NDArray[np.int64]:
    """(D,) tokens of each document."""
    table = documents.with_format("arrow").select_columns(["input_ids"])
    parts = [
        np.asarray(pyarrow.compute.list_value_length(batch["input_ids"]))
        for batch in table.iter(batch_size=100)
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _pieces_alone(
    lengths: NDArray[np.int64], length: int, span: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples that lie within one document, and what they leave of each.

    A document is cut at multiples of `span`; each stretch of at least `length` tokens is a sample.

    Returns:
        (P, 3) rows of document, start, size, and (D,) tokens at the end of each document.
    """
    rest = lengths % span
    is_sample = rest >= length
    counts = lengths // span + is_sample
    document = np.repeat(np.arange(len(lengths)), counts)
    first_sample = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(document)) - first_sample) * span
    size = np.minimum(lengths[document] - start, span)
    return np.stack([document, start, size], axis=1), np.where(is_sample, 0, rest)


def _packed_pieces(
    lengths: NDArray[np.int64], left: NDArray[np.int64], length: int
) -> NDArray[np.int64]:
    """(P, 3) as above: the last `left` tokens of the documents, end to end, cut at multiples of
    `length`.

    The tokens after the last multiple do not fill a sample and are left out.
    """
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
