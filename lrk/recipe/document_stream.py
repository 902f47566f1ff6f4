"""Documents that are read when they are needed: for data that neither memory nor disk holds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

from lrk.recipe.documents import (
    HUB_PREFIX,
    check_kinds,
    check_sources,
    columns_of_documents,
    file_options,
    files_by_builder,
    hub_address,
    is_saved,
    load_saved,
    name_of,
    short,
    unreadable,
)

Row = dict[str, Any]

_READ_ERRORS = (DatasetGenerationError, pyarrow.ArrowInvalid, OSError, EOFError, ValueError)


@dataclass(frozen=True)
class _Part:
    """Rows of one source, or of those of its files that one builder of `datasets` reads."""

    rows: Iterable[Row]
    what: str
    text_column: str
    source: int
    builder: str = ""
    files: Sequence[str] = ()

    def read(self) -> Iterator[Row]:
        try:
            yield from self.rows
        except _READ_ERRORS as error:
            if self.files:
                raise ValueError(unreadable(self.builder, list(self.files), error)) from error
            raise ValueError(f"{self.what} cannot be read: {short(error)}") from error

    def columns(self) -> tuple[str, ...]:
        """The columns of documents, by the first row; none if there is no row."""
        first = next(self.read(), None)
        return (
            () if first is None else columns_of_documents(list(first), self.text_column, self.what)
        )

    def documents(self, columns: tuple[str, ...]) -> Iterator[Row]:
        for row in self.read():
            if columns != (self.text_column,):
                yield {name: row.get(name) for name in columns}
                continue
            text = row.get(self.text_column)
            if not isinstance(text, str | None):
                raise ValueError(
                    f"column {self.text_column!r} of {self.what} holds {type(text).__name__}, "
                    "not text"
                )
            yield {"text": text}


class DocumentStream:
    """Documents as `stream_documents` makes them. Iterating again reads again from the first."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        columns = [part.columns() for part in parts]
        self._parts = [(part, names) for part, names in zip(parts, columns, strict=True) if names]
        kinds = [
            ("text",) if names == (part.text_column,) else names for part, names in self._parts
        ]
        check_kinds(kinds)
        self.column_names: list[str] = list(kinds[0]) if kinds else ["text"]

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.with_sources())

    def with_sources(self) -> Iterator[tuple[int, Row]]:
        """Each document with the number of the source that it came from."""
        for part, columns in self._parts:
            for row in part.documents(columns):
                yield part.source, row


def stream_documents(sources: Sequence[str], text_column: str = "text") -> DocumentStream:
    """Open every source of `load_documents` without preparing it, and join them in that order.

    Nothing is written to the disk, and of a data set of the hub only the rows that are asked for
    are downloaded. One document, or one batch of rows of `datasets`, is in memory at a time. The
    first row of each source is read at once, and tells what columns it has.

    Raises:
        TypeError, ValueError: as `load_documents`; for what lies beyond the first rows, when it is
            reached.
    """
    check_sources(sources)
    return DocumentStream(
        [
            part
            for number, source in enumerate(sources)
            for part in _open(source, text_column, number)
        ]
    )


def _open(source: str, text_column: str, number: int) -> list[_Part]:
    what = f"data source {source!r}"
    if source.startswith(HUB_PREFIX):
        path, name, split = hub_address(source)
        return [
            _Part(load_dataset(path, name, split=split, streaming=True), what, text_column, number)
        ]
    if is_saved(source):
        return [_Part(load_saved(source).to_iterable_dataset(), what, text_column, number)]
    return [
        _open_files(builder, files, "text" if builder == "text" else text_column, number)
        for builder, files in files_by_builder(source).items()
    ]


def _open_files(builder: str, files: list[str], text_column: str, number: int) -> _Part:
    try:
        rows = load_dataset(**file_options(builder, files), streaming=True)
    except _READ_ERRORS as error:
        raise ValueError(unreadable(builder, files, error)) from error
    return _Part(rows, name_of(builder, files), text_column, number, builder, files)
