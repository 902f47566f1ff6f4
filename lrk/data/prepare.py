"""`lrk-data prepare`: raw documents become token ids and the lengths of their sentences."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from lrk.data.shards import (
    Columns,
    begin,
    check_free,
    make_missing,
    remove_damaged,
    seal,
    versions,
)
from lrk.field_types import check_types
from lrk.recipe import stream_documents
from lrk.recipe.data_files import check_sources, content_hashes
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.recipe.prepared import Manifest
from lrk.recipe.rows import Document
from lrk.recipe.segments import SentenceEnds, sentence_ends
from lrk.recipe.tokens import (
    BATCH_OF_DOCUMENTS,
    FEATURES,
    FEATURES_WITH_LABELS,
    check_tokenizer,
    tokenized_rows,
)
from lrk.sealed import digest
from lrk.share import Share, at_work

# Characters of text in a shard, about 16 million tokens of English: 64 MiB.
SHARD_CHARACTERS = 2**26

Rows = list[tuple[int, Document]]


@dataclass(frozen=True)
class Preparation:
    """What the content of a prepared folder follows from.

    Attributes:
        data: sources, as of `load_documents`; each is one source to the upsampling of long
            documents.
        text_column, assistant_only, split_special_tokens: as in `lrk-train`.
        shard_characters: a shard is closed by the document that brings it to so many.
    """

    data: list[str]
    text_column: str = "text"
    assistant_only: bool = True
    split_special_tokens: bool = True
    shard_characters: int = SHARD_CHARACTERS

    def __post_init__(self) -> None:
        check_sources(self.data)
        check_types(self)
        if self.shard_characters < 1:
            raise ValueError(f"shard_characters is {self.shard_characters}; it must be positive")


def prepare(
    preparation: Preparation,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    share: Share | None = None,
    num_proc: int = 1,
) -> Manifest | None:
    """Write what is missing of a prepared folder.

    The documents are read once from first to last, by one process, and cut into shards by their
    characters. Shards are tokenized by `num_proc` processes. What a shard holds depends neither on
    them nor on `share`.

    Returns:
        The complete manifest, or None if other shares are still missing.

    Raises:
        ValueError: for data that cannot be read or hold no text, or a folder that was begun with
            other arguments.
        atomic.SaveError: if a shard cannot be written.
    """
    folder, share = Path(output_dir).expanduser(), share or Share()
    ends = sentence_ends(tokenizer)
    wanted = _manifest(preparation, tokenizer)
    check_free(folder, wanted)
    stream = stream_documents(preparation.data, preparation.text_column)
    check_tokenizer(tokenizer, stream.is_text)
    inputs = content_hashes(preparation.data)
    if not stream.is_text:
        inputs["chat_template"] = digest(tokenizer.chat_template)
    with at_work(folder, share):
        manifest = begin(folder, replace(wanted, inputs=inputs))
        if manifest.shards is not None and not remove_damaged(folder, manifest):
            return manifest
        features = FEATURES if stream.is_text else FEATURES_WITH_LABELS
        make = partial(
            _columns,
            tokenizer=tokenizer,
            ends=ends,
            assistant_only=preparation.assistant_only,
            split_special_tokens=preparation.split_special_tokens,
            is_text=stream.is_text,
        )
        tasks = _Counted(chunks(stream.with_sources(), preparation.shard_characters))
        with_source = Features({**features, "source": Value("int32")})
        make_missing(folder, tasks, make, with_source, share, num_proc)
        if manifest.shards is None:
            manifest = replace(manifest, summary={"documents_read": tasks.documents})
        return seal(folder, manifest, tasks.shards, _no_totals)


def chunks(rows: Iterable[tuple[int, Document]], characters: int) -> Iterator[Rows]:
    """Rows that follow one another, together as soon as they hold so many characters."""
    chunk: Rows = []
    total = 0
    for source, row in rows:
        chunk.append((source, row))
        total += _characters(row)
        if total >= characters:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


class _Counted:
    """Numbered chunks, and how many shards and documents they were."""

    def __init__(self, rows: Iterator[Rows]) -> None:
        self._rows = rows
        self.shards = self.documents = 0

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        for number, chunk in enumerate(self._rows):
            self.shards, self.documents = number + 1, self.documents + len(chunk)
            yield number, chunk


def _columns(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, ends: SentenceEnds, **options: Any
) -> Iterator[Columns]:
    for source, group in groupby(rows, key=lambda row: row[0]):
        of_source = (document for _, document in group)
        while batch := list(islice(of_source, BATCH_OF_DOCUMENTS)):
            tokenized = tokenized_rows(batch, tokenizer, ends, **options)
            yield {**tokenized, "source": [source] * len(tokenized["input_ids"])}


def _manifest(preparation: Preparation, tokenizer: PreTrainedTokenizerBase) -> Manifest:
    return Manifest(
        command="prepare",
        arguments={**vars(preparation), "tokenizer": tokenizer.name_or_path},
        tokenizer=tokenizer_fingerprint(tokenizer),
        inputs={},
        sources=preparation.data,
        versions=versions(),
    )


def _no_totals(documents: Dataset) -> dict[str, int]:
    return {}


def _characters(value: Any) -> int:
    """Characters of the texts in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
