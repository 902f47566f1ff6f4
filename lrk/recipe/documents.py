"""Documents: the texts or conversations that samples are cut from, one row each."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow
import pyarrow.ipc
from datasets import Dataset, Features, Value, concatenate_datasets

from lrk import atomic
from lrk.lock import in_turn
from lrk.recipe.data_files import check_sources, content_hashes, is_saved, source_of
from lrk.recipe.document_stream import documents_of_dataset, saved_or_hub, stream_documents
from lrk.recipe.fingerprint import code_hash
from lrk.recipe.rows import DataError, Document, check_columns

FEATURES = Features({"text": Value("string")})
# Each row as JSON: no two need have the same keys, which Arrow would want.
CONVERSATION = "conversation"
FEATURES_OF_CONVERSATIONS = Features({CONVERSATION: Value("string")})

_CHARACTERS_AT_A_TIME = 2**22
_ROWS_AT_A_TIME = 1000


def load_documents(sources: Sequence[str], text_column: str = "text") -> Dataset:
    """Read every source and join them in the given order.

    A source is one of

    - a file: `.jsonl`, `.json`, `.parquet` and `.arrow` hold one document a row, in `text_column`;
      any other file is text in UTF-8 and is one document;
    - a folder: all files below it whose path has no part that begins with a dot, or what
      `Dataset.save_to_disk` wrote there (of several splits, `train`);
    - a glob pattern such as `src/**/*.py`, where no file or folder has that very name;
    - `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIG`, `hub:OWNER/NAME:SPLIT` or both: a data set that
      `datasets.load_dataset` downloads; the split is `train` unless given.

    A source may end with `#COLUMN`, which is its own in place of `text_column`. Rows without it may
    hold conversations, in one of the forms of `lrk.recipe.chat_formats`. Other columns may be
    anything.

    What is read is kept in the cache of `datasets`, by a hash of the content of the files.

    Returns:
        A data set with the one column `text`, or `conversation`, each as JSON.

    Raises:
        TypeError: for one string instead of a list.
        ValueError: if there is no source, a source does not exist or matches no file, a file
            cannot be read (with the line, in JSON lines), `text_column` is absent or does not hold
            text, or the sources are of several kinds.
    """
    check_sources(sources)
    parts = [_load(*source_of(source, text_column)) for source in sources]
    first = {part.column_names[0]: source for part, source in zip(parts, sources, strict=True)}
    if len(first) > 1:
        raise DataError(
            f"data mixes texts ({first['text']!r}) and conversations ({first[CONVERSATION]!r}); "
            "it must be of one kind"
        )
    documents = concatenate_datasets(parts)
    if len(documents) == 0:
        raise DataError(f"data {', '.join(map(repr, sources))} holds no document")
    return documents


def _load(source: str, text_column: str) -> Dataset:
    opened = saved_or_hub(source, streaming=False)
    if opened is None:
        stream = stream_documents([source], text_column)
        return _kept([content_hashes([source]), text_column], stream, stream.is_text)
    key: object = opened._fingerprint
    if is_saved(source):
        key = content_hashes([source])
        opened = Dataset(opened.data, info=opened.info, fingerprint=_hash(key)[:16])
    what = f"data source {source!r}"
    if check_columns(opened.column_names, text_column, what) == (text_column,):
        return _texts(opened, text_column, what)
    return _kept([key, source], documents_of_dataset(opened, text_column, what), False)


def _texts(loaded: Dataset, text_column: str, what: str) -> Dataset:
    """The texts of a data set, which is in Arrow files already."""
    dtype = getattr(loaded.features[text_column], "dtype", None)
    if dtype not in ("string", "large_string"):
        raise DataError(f"column {text_column!r} of {what} holds {dtype or 'lists'}, not text")
    texts = loaded.select_columns([text_column])
    if text_column != "text":
        texts = texts.rename_column(text_column, "text")
    return texts if texts.features == FEATURES else texts.cast(FEATURES)


def _kept(key: object, documents: Iterable[Document], is_text: bool) -> Dataset:
    """Documents out of the cache or into it; of several processes one writes them.

    The code that reads them is part of the key, because they follow from it too.
    """
    name = _hash([key, code_hash()])
    path = Path(datasets.config.HF_DATASETS_CACHE) / "lrk" / name[:16] / "documents.arrow"
    if not path.exists():
        with in_turn(path.parent, "reading the data"):
            if not path.exists():
                _write(path, documents, FEATURES if is_text else FEATURES_OF_CONVERSATIONS)
    return Dataset(Dataset.from_file(str(path)).data, fingerprint=name[:16])


def _write(path: Path, documents: Iterable[Document], features: Features) -> None:
    (column,) = features
    with (
        atomic.atomic_file(path) as temporary,
        pyarrow.OSFile(str(temporary), "wb") as file,
        pyarrow.ipc.new_stream(file, features.arrow_schema) as stream,
    ):
        for texts in _batches(map(_as_text, documents)):
            stream.write_batch(
                pyarrow.RecordBatch.from_pydict({column: texts}, features.arrow_schema)
            )


def _as_text(document: Document) -> str | None:
    if "text" in document or not document:
        return document.get("text")
    return json.dumps(document, ensure_ascii=False)


def _batches(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Of about _CHARACTERS_AT_A_TIME."""
    batch: list[str | None] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text or "")
        if size >= _CHARACTERS_AT_A_TIME or len(batch) == _ROWS_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
