"""How long the documents of the data are: a bounded look at them, terabytes are not tokenized."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.recipe import sentence_ends, stream_documents
from lrk.recipe.prepared import is_prepared, read_manifest
from lrk.recipe.rows import Document
from lrk.recipe.samples import document_lengths
from lrk.recipe.tokens import BATCH_OF_DOCUMENTS, check_tokenizer, tokenized_rows

DOCUMENTS = 512
CHARACTERS = 2**24
"""Of all sources together: some ten seconds of a tokenizer."""
PREPARED_DOCUMENTS = 2**16


@dataclass(frozen=True)
class Survey:
    """The first documents of each source.

    Attributes:
        lengths: (D,) tokens of each; a text that is longer than what is read counts as that.
        is_text: whether they are texts, not conversations.
        tokens: of all data, or None where the survey did not come to their end.
    """

    lengths: NDArray[np.int64]
    is_text: bool
    tokens: int | None

    @property
    def is_whole(self) -> bool:
        """Whether these are all documents."""
        return self.tokens == int(self.lengths.sum())

    def share_of_tokens(self, length: int) -> float:
        """How much of the surveyed text stands in documents of at least `length` tokens."""
        total = int(self.lengths.sum())
        return int(self.lengths[self.lengths >= length].sum()) / total if total else 0.0

    def documents_of(self, length: int) -> int:
        """How many of the surveyed documents have at least `length` tokens."""
        return int((self.lengths >= length).sum())


def survey(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    text_column: str = "text",
    assistant_only: bool = True,
    split_special_tokens: bool = True,
) -> Survey:
    """Look at data as `lrk-train` takes them.

    Raises:
        ValueError: for what cannot be read, or holds no text.
    """
    parts = [
        _prepared(Path(source).expanduser(), PREPARED_DOCUMENTS // len(sources))
        if is_prepared(source)
        else _documents(
            source, len(sources), tokenizer, text_column, assistant_only, split_special_tokens
        )
        for source in sources
    ]
    lengths = np.concatenate([part.lengths for part in parts])
    if len(lengths) == 0:
        raise ValueError(f"data {', '.join(map(repr, sources))} hold no text")
    totals = [part.tokens for part in parts]
    known = [total for total in totals if total is not None]
    total = sum(known) if len(known) == len(totals) else None
    return Survey(lengths, all(part.is_text for part in parts), total)


def _prepared(folder: Path, most: int) -> Survey:
    """Lengths are read off the offsets of memory-mapped arrays."""
    manifest = read_manifest(folder)
    if manifest.shards is None:
        raise ValueError(f"data source {str(folder)!r} is not finished: run lrk-data again")
    lengths: list[NDArray[np.int64]] = []
    is_text = True
    for shard in manifest.shards:
        if most <= 0:
            break
        documents = Dataset.from_file(str(folder / shard.file))
        documents = documents.select(range(min(len(documents), most)))
        lengths.append(document_lengths(documents))
        is_text = "is_label" not in documents.column_names
        most -= len(documents)
    total = sum(shard.tokens for shard in manifest.shards)
    return Survey(np.concatenate([np.zeros(0, np.int64), *lengths]), is_text, total)


def _documents(
    source: str,
    sources: int,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str,
    assistant_only: bool,
    split_special_tokens: bool,
) -> Survey:
    stream = stream_documents([source], text_column)
    check_tokenizer(tokenizer, stream.is_text)
    ends = sentence_ends(tokenizer)
    read = _Bounded(iter(stream), DOCUMENTS // sources or 1, CHARACTERS // sources)
    lengths: list[int] = []
    documents = iter(read)
    while batch := list(islice(documents, BATCH_OF_DOCUMENTS)):
        columns = tokenized_rows(
            batch, tokenizer, ends, assistant_only, split_special_tokens, stream.is_text
        )
        lengths += map(len, columns["input_ids"])
    total = sum(lengths) if read.is_whole else None
    return Survey(np.array(lengths, np.int64), stream.is_text, total)


class _Bounded:
    """Documents up to a number of them and of their characters, the last text cut.

    Attributes:
        is_whole: whether all were read, and none was cut.
    """

    def __init__(self, documents: Iterator[Document], most: int, characters: int) -> None:
        self._documents, self._most, self._characters = documents, most, characters
        self.is_whole = False

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            if self._most == 0 or self._characters <= 0:
                return
            self._most -= 1
            text = document.get("text")
            if text is not None and len(text) > self._characters:
                yield Document({"text": text[: self._characters]}, document.origin)
                return
            self._characters -= len(text or "")
            yield document
        self.is_whole = True
