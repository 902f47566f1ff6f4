"""Documents that are read when they are needed: for data that neither memory nor disk holds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk

from lrk.recipe.data_files import HUB_PREFIX, check_sources, data_files, is_saved, source_of
from lrk.recipe.rows import (
    READ_ERRORS,
    DataError,
    Document,
    Row,
    check_columns,
    documents_of_file,
    documents_of_rows,
    given,
    short,
)


@dataclass(frozen=True)
class _Part:
    """A source, or one file of it. `read` opens it anew."""

    source: int
    read: Callable[[], Iterator[Document]]


class DocumentStream:
    """Documents as `stream_documents` makes them. Iterating again reads again from the first.

    Attributes:
        is_text: whether they are texts, not conversations.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        firsts: dict[int, Document] = {}
        for part in parts:
            if part.source not in firsts:
                first = next((document for document in part.read() if document), None)
                if first is not None:
                    firsts[part.source] = first
        for first in firsts.values():
            _check_alike(next(iter(firsts.values())), first)
        self.is_text = all("text" in first for first in firsts.values())

    def __iter__(self) -> Iterator[Document]:
        return (document for _, document in self.with_sources())

    def with_sources(self) -> Iterator[tuple[int, Document]]:
        """Each document with the number of the source that it came from."""
        first: Document | None = None
        for part in self._parts:
            for document in part.read():
                if document:
                    first = first or document
                    _check_alike(first, document)
                yield part.source, document


def stream_documents(sources: Sequence[str], text_column: str = "text") -> DocumentStream:
    """Open every source of `load_documents` without preparing it, and join them in that order.

    Nothing is written to the disk, and of a data set of the hub only the rows that are asked for
    are downloaded. One document, or one batch of rows of Arrow, is in memory at a time. The first
    document of each source is read at once, and tells what columns it has.

    Raises:
        TypeError, ValueError: as `load_documents`; for what lies beyond the first documents, when
            it is reached.
    """
    check_sources(sources)
    return DocumentStream(
        [
            part
            for number, source in enumerate(sources)
            for part in _parts(*source_of(source, text_column), number)
        ]
    )


def saved_or_hub(source: str, streaming: bool) -> Dataset | IterableDataset | None:
    """What `Dataset.save_to_disk` wrote, memory-mapped, or a data set of the hub; None for files.

    Of several splits `train`, where `hub:` does not say another.
    """
    what = f"data source {source!r}"
    try:
        if source.startswith(HUB_PREFIX):
            path, name, split = hub_address(source)
            options = {"streaming": True} if streaming else {}
            return load_dataset(path, name, split=split, **options)
        if not is_saved(source):
            return None
        loaded = load_from_disk(str(Path(source).expanduser()))
    except DataError:
        raise
    except (*READ_ERRORS, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{what} cannot be read: {short(error)}") from error
    if isinstance(loaded, DatasetDict):
        if "train" not in loaded:
            raise DataError(f"{what} has the splits {', '.join(loaded)}; one must be train")
        loaded = loaded["train"]
    return loaded


def hub_address(source: str) -> tuple[str, str | None, str]:
    """Path, configuration and split that `hub:OWNER/NAME[/CONFIG][:SPLIT]` names."""
    name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    owner, _, rest = name.partition("/")
    dataset, _, config = rest.partition("/")
    if not (owner and dataset):
        raise DataError(f"data source {source!r} must read hub:OWNER/NAME[/CONFIG][:SPLIT]")
    return f"{owner}/{dataset}", config or None, split or "train"


def _parts(source: str, text_column: str, number: int) -> list[_Part]:
    opened = saved_or_hub(source, streaming=True)
    if opened is not None:
        what = f"data source {source!r}"
        return [_Part(number, partial(documents_of_dataset, opened, text_column, what))]
    return [
        _Part(number, partial(documents_of_file, file, text_column)) for file in data_files(source)
    ]


def documents_of_dataset(
    rows: Dataset | IterableDataset, text_column: str, what: str
) -> Iterator[Document]:
    """The documents of a data set of `datasets`."""
    if rows.column_names is not None:
        rows = rows.select_columns(list(check_columns(rows.column_names, text_column, what)))
    try:
        yield from documents_of_rows(_numbered(rows, what), text_column, what)
    except DataError:
        raise
    except READ_ERRORS as error:
        raise DataError(f"{what} cannot be read: {short(error)}") from error


def _numbered(rows: Iterable[dict], what: str) -> Iterator[Row]:
    for number, row in enumerate(rows):
        yield f"row {number} of {what}", given(row)


def _check_alike(first: Document, other: Document) -> None:
    if ("text" in first) != ("text" in other):
        text, conversation = (first, other) if "text" in first else (other, first)
        raise DataError(
            f"data mixes texts ({text.origin}) and conversations ({conversation.origin}); it must "
            "be of one kind"
        )
