"""Rows of data: of each only the columns that hold a document are looked at, and none is cast."""

import bz2
import gzip
import io
import json
import lzma
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from lrk.recipe.chat_formats import NAMES, chat_columns, conversation

# Arrow counts the bytes of a text in 32 bits.
LONGEST = 2**31 - 1

# Rows without a document before the first one that has one: a wrong text_column shows soon.
_PATIENCE = 100
_ROWS_OF_ARROW = 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

READ_ERRORS = (
    pyarrow.ArrowException,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
)

# Where a row stands, and what it is.
Row = tuple[str, Any]


class DataError(ValueError):
    """What is wrong with data, in a sentence that names the file."""


class Document(dict[str, Any]):
    """`text`, or `messages`, or `prompt` and `completion`; empty where a row has no document.

    Attributes:
        origin: the line or row and its file, for sentences.
    """

    def __init__(self, columns: Mapping[str, Any], origin: str) -> None:
        super().__init__(columns)
        self.origin = origin

    def __reduce__(self) -> tuple[Any, ...]:
        return Document, (dict(self), self.origin)


def documents_of_file(path: Path, text_column: str) -> Iterator[Document]:
    """The documents of one data file, which is read as they are.

    `.jsonl`, `.json`, `.parquet` and `.arrow`, compressed or not, hold a document a row; any other
    file is one, text in UTF-8.

    Raises:
        DataError: for what cannot be read, is no text, is longer than LONGEST bytes, or has none of
            the columns.
    """
    what = f"data file {str(path)!r}"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1] if suffixes else "")
    kinds = suffixes[:-1] if compression else suffixes
    rows_of = _FORMATS.get(kinds[-1] if kinds else "")
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            if compression:
                file = stack.enter_context(compression(file))
                if rows_of in (_parquet, _arrow):
                    file = io.BytesIO(file.read())  # they are read from their ends
            if rows_of is None:
                yield Document({"text": _text(file, what)}, what)
            else:
                yield from documents_of_rows(rows_of(file, what, text_column), text_column, what)
        except DataError:
            raise
        except READ_ERRORS as error:
            raise DataError(f"{what} cannot be read: {short(error)}") from error


def documents_of_rows(rows: Iterable[Row], text_column: str, what: str) -> Iterator[Document]:
    """The documents that rows hold, by their columns.

    Raises:
        DataError: if neither of the first rows has one, or a text is none.
    """
    found = False
    names: dict[str, None] = {}
    for number, (origin, row) in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{origin} is {type(row).__name__}, not an object of named columns")
        columns = columns_of_documents(row, text_column)
        found |= bool(columns)
        if not found:
            names.update(dict.fromkeys(map(str, row)))
            if number == _PATIENCE:
                break
        yield Document(_document(row, columns, text_column, origin), origin)
    if names and not found:
        raise _no_column(names, text_column, what)


def columns_of_documents(names: Iterable[str], text_column: str) -> tuple[str, ...]:
    """Which of the columns are read: the text's, or those of conversations, or none."""
    there = set(names)
    return (text_column,) if text_column in there else chat_columns(there)


def check_columns(names: Iterable[str], text_column: str, what: str) -> tuple[str, ...]:
    """`columns_of_documents`, of which there must be some."""
    columns = columns_of_documents(names, text_column)
    if not columns:
        raise _no_column(names, text_column, what)
    return columns


def rows_of_batches(batches: Iterable[pyarrow.RecordBatch], what: str) -> Iterator[Row]:
    """The rows of Arrow tables, which are numbered from 0."""
    numbers = count()
    for batch in batches:
        batch.validate(full=True)
        for first in range(0, len(batch), _ROWS_OF_ARROW):
            for row in batch.slice(first, _ROWS_OF_ARROW).to_pylist():
                yield f"row {next(numbers)} of {what}", given(row)


def given(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of Arrow without the nulls that its schema puts where JSON would have no key."""
    return {name: _given(value) for name, value in row.items()}


def short(error: BaseException) -> str:
    """The text of an error, in at most 200 characters of one line."""
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__


def _given(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _given(each)
            for key, each in value.items()
            if each is not None or key in ("role", "content")
        }
    return [_given(each) for each in value] if isinstance(value, list) else value


def _document(
    row: Mapping[str, Any], columns: tuple[str, ...], text_column: str, origin: str
) -> dict[str, Any]:
    if not columns:
        return {}
    if columns != (text_column,):
        try:
            converted = conversation({name: row[name] for name in columns})
            _check_characters(json.dumps(converted, ensure_ascii=False), origin)
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{origin} holds no conversation: {short(error)}") from error
        return converted
    text = row[text_column]
    if text is None:
        return {"text": None}
    if not isinstance(text, str):
        raise DataError(f"column {text_column!r} of {origin} holds {type(text).__name__}, not text")
    _check_characters(text, origin)
    return {"text": text}


def _check_characters(text: str, origin: str) -> None:
    if text.isascii():
        return
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise DataError(f"{origin} holds {half}, half of a character in UTF-16") from error
    if size > LONGEST:
        raise _too_long(origin)


def _no_column(names: Iterable[str], text_column: str, what: str) -> DataError:
    there = textwrap.shorten(", ".join(names), 200, placeholder=" ...")
    return DataError(
        f"{what} has no column {text_column!r}; text_column must be one of {there}, or the rows "
        f"have {NAMES}"
    )


def _too_long(origin: str) -> DataError:
    return DataError(f"{origin} has more than {LONGEST:,} bytes; cut it into several documents")


def _read(file: IO[bytes], what: str, head: bytes = b"") -> bytes:
    content = head + file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise _too_long(what)
    return content.removeprefix(_BYTE_ORDER_MARK)


def _text(file: IO[bytes], what: str) -> str:
    """A text of UTF-8, its lines ended by newlines alone."""
    content = _read(file, what)
    zero = content.find(0)
    if zero >= 0:
        raise DataError(f"{what} is not text: byte {zero:,} is zero")
    return io.IncrementalNewlineDecoder(None, translate=True).decode(content.decode(), final=True)


def _json_lines(file: IO[bytes], what: str, text_column: str) -> Iterator[Row]:
    return _rows_of_lines(_lines(file, what), what)


def _json(file: IO[bytes], what: str, text_column: str) -> Iterator[Row]:
    """Rows of JSON lines, of a list, or one object."""
    lines = _lines(file, what)
    number, first = next(((n, line) for n, line in lines if not line.isspace()), (0, b""))
    if not number or _is_object(first):
        yield from _rows_of_lines(chain([(number, first)], lines), what)
        return
    value = _parsed(_read(file, what, first), what)
    for number, row in enumerate(value if isinstance(value, list) else [value]):
        yield f"row {number} of {what}", row


def _lines(file: IO[bytes], what: str) -> Iterator[tuple[int, bytes]]:
    for number in count(1):
        line = file.readline(LONGEST + 1)
        if not line:
            return
        if len(line) > LONGEST:
            raise _too_long(f"line {number} of {what}")
        yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _rows_of_lines(lines: Iterable[tuple[int, bytes]], what: str) -> Iterator[Row]:
    for number, line in lines:
        if line and not line.isspace():
            origin = f"line {number} of {what}"
            yield origin, _parsed(line, origin)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(content: bytes, what: str) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{what} cannot be read: {short(error)}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {short(error)}") from error


def _parquet(file: IO[bytes], what: str, text_column: str) -> Iterator[Row]:
    table = pyarrow.parquet.ParquetFile(file)
    columns = check_columns(table.schema_arrow.names, text_column, what)
    return rows_of_batches(table.iter_batches(_ROWS_OF_ARROW, columns=list(columns)), what)


def _arrow(file: IO[bytes], what: str, text_column: str) -> Iterator[Row]:
    """Rows of an Arrow stream or file."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    batches: Iterable[pyarrow.RecordBatch]
    if is_file:
        opened = pyarrow.ipc.open_file(file)
        batches = map(opened.get_batch, range(opened.num_record_batches))
    else:
        opened = batches = pyarrow.ipc.open_stream(file)
    columns = list(check_columns(opened.schema.names, text_column, what))
    return rows_of_batches((batch.select(columns) for batch in batches), what)


def _zstandard(file: IO[bytes]) -> Any:
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd"))


_FORMATS: dict[str, Callable[[IO[bytes], str, str], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
_COMPRESSIONS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstandard,
}
