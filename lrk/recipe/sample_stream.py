"""Samples of documents that are read as training goes, in memory that does not grow with them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from lrk.recipe.samples import (
    Piece,
    Sample,
    check_length,
    piece_of,
    sample_of,
    span_of,
    too_short,
)
from lrk.recipe.segments import sentence_ends
from lrk.recipe.selection import Selection
from lrk.recipe.tokens import BATCH_OF_DOCUMENTS, check_tokenizer, tokenized_rows

_DTYPES = {"input_ids": np.int32, "segment_lengths": np.int32, "is_label": np.bool_}


class SampleStream(torch.utils.data.IterableDataset[Sample]):
    """Samples of `length` tokens without end: after the last document the first follows again.

    One pass over the documents gives the samples that `Samples` would cut out of them, in the order
    in which they fill up: a document of at least `length` tokens gives samples of its own at once;
    what is left of it and shorter documents are laid end to end, and a packed sample follows the
    document that fills it. What does not fill a last sample of the pass is left out. Samples are
    numbered in this order, on through all passes, so that none has the positions of another.

    Iterating again begins again with the same samples in the same order. In memory are 16
    documents, less than one sample of left-overs, and the samples that are being shuffled, at some
    8 bytes a token.

    Args:
        documents: rows with `text`, or `messages`, or `prompt` and `completion`, which can be
            iterated over several times: a `DocumentStream`, a `datasets.IterableDataset`, a list.
        length: tokens in a sample, at least 2.
        pack: also make samples of short documents and of the ends of long ones.
        assistant_only, split_special_tokens: as for `tokenize`.
        shuffle_buffer: samples among which the next one is drawn; 0 leaves them in order.
        seed: of the shuffling, which is another one in every pass.
        selection: as for `Samples`.

    Raises:
        ValueError: when iterated, if the documents do not fill one sample, or with more than one
            worker: where a sample begins depends on every document before it, so each worker
            would read and tokenize all of them.
    """

    def __init__(
        self,
        documents: Iterable[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        pack: bool = True,
        assistant_only: bool = True,
        shuffle_buffer: int = 0,
        seed: int = 0,
        selection: Selection | None = None,
        split_special_tokens: bool = True,
    ) -> None:
        check_length(length, selection)
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer is {shuffle_buffer}; it must be 0 or positive")
        self.length = length
        self.shuffle_buffer = shuffle_buffer
        self.selection = selection
        self._documents = documents
        self._tokenizer = tokenizer
        self._ends = sentence_ends(tokenizer)
        self._pack = pack
        self._assistant_only = assistant_only
        self._split_special_tokens = split_special_tokens
        self._seed = seed

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"a stream of samples is read by {worker.num_workers} workers; it must be one or "
                "none, because each of them would read and tokenize all documents"
            )
        indices = count()
        for number in count():
            generator = np.random.default_rng([self._seed, number])
            yield from _shuffled(self.one_pass(indices), self.shuffle_buffer, generator)

    def fingerprint(self) -> str:
        """Of the first sample: more of a stream is not known before it is read."""
        first = next(self.one_pass(count()))
        return hashlib.sha256(first["input_ids"].numpy().tobytes()).hexdigest()

    def one_pass(self, indices: Iterator[int]) -> Iterator[Sample]:
        """The samples of one pass over the documents, in order, which take their numbers in turn.

        Raises:
            ValueError: at its end, if there was none.
        """
        documents = tokens = longest = samples = 0
        waiting: list[Piece] = []
        free = self.length  # tokens that the sample which is being packed still lacks
        span = span_of(self.length, self.selection)
        for number, document in enumerate(self._tokenized()):
            total = len(document["input_ids"])
            documents, tokens, longest = number + 1, tokens + total, max(longest, total)
            end = total if total % span >= self.length else total - total % span
            for start in range(0, end, span):
                yield sample_of(next(indices), [self._piece(document, number, start, end)])
                samples += 1
            while self._pack and end < total:
                taken = min(total - end, free)
                waiting.append(self._piece(document, number, end, end + taken))
                end, free = end + taken, free - taken
                if not free:
                    yield sample_of(next(indices), waiting)
                    samples += 1
                    waiting, free = [], self.length
        if not samples:
            raise ValueError(too_short(documents, tokens, longest, self.length, self._pack))

    def _piece(self, document: Mapping[str, NDArray], number: int, start: int, end: int) -> Piece:
        """The piece from `start` on, of at most one span."""
        size = min(end - start, span_of(self.length, self.selection))
        return piece_of(document, number, start, size, self.length, self.selection)

    def _tokenized(self) -> Iterator[dict[str, NDArray]]:
        rows = iter(self._documents)
        while batch := list(islice(rows, BATCH_OF_DOCUMENTS)):
            is_text = all("text" in row or not row for row in batch)
            check_tokenizer(self._tokenizer, is_text)
            tokenized = tokenized_rows(
                batch,
                self._tokenizer,
                self._ends,
                self._assistant_only,
                self._split_special_tokens,
                is_text,
            )
            for row in zip(*tokenized.values(), strict=True):
                yield {
                    name: np.asarray(value, dtype=_DTYPES[name])
                    for name, value in zip(tokenized, row, strict=True)
                }


def _shuffled(
    samples: Iterable[Sample], size: int, generator: np.random.Generator
) -> Iterator[Sample]:
    """Give out a random one of `size` samples at a time, and take the next into its place."""
    held: list[Sample] = []
    for sample in samples:
        if len(held) < size:
            held.append(sample)
        elif size:
            slot = int(generator.integers(size))
            yield held[slot]
            held[slot] = sample
        else:
            yield sample
    for slot in generator.permutation(len(held)):
        yield held[slot]
