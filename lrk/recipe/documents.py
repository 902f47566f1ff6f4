"""Documents: the texts or conversations that samples are cut from, one row each."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from fsspec.core import open as open_any

from lrk.recipe.conversations import MESSAGES, PROMPT
from lrk.recipe.prepared import is_prepared

HUB_PREFIX = "hub:"
FEATURES = Features({"text": Value("string")})

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
_COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}
_GLOB_CHARACTERS = frozenset("*?[")
_SAVED = ("state.json", "dataset_dict.json")  # by Dataset.save_to_disk, DatasetDict.save_to_disk


def load_documents(sources: Sequence[str], text_column: str = "text") -> Dataset:
    """Read every source and join them in the given order.

    A source is one of
    - a file: `.jsonl`, `.json`, `.parquet` and `.arrow` hold one document a row, in `text_column`;
      any other file is text in UTF-8 and is one document;
    - a folder: all files below it whose path has no part that begins with a dot, or what
      `Dataset.save_to_disk` wrote there (of several splits, `train`);
    - a glob pattern such as `src/**/*.py`;
    - `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIG`, `hub:OWNER/NAME:SPLIT` or both: a data set that
      `datasets.load_dataset` downloads; the split is `train` unless given.

    Rows without `text_column` may hold conversations: `messages`, a list of `{role, content}`, or
    `prompt` and `completion`.

    Returns:
        A data set with the one column `text`, or `messages`, or the two `prompt` and `completion`.

    Raises:
        TypeError: for one string instead of a list.
        ValueError: if there is no source, a source does not exist or matches no file, a file
            cannot be read (with the line, in JSON lines), `text_column` is absent or does not hold
            text, or the sources are of several kinds.
    """
    check_sources(sources)
    parts = [part for source in sources for part in _load_source(source, text_column)]
    check_kinds([part.column_names for part in parts])
    return concatenate_datasets(parts)


def check_sources(sources: Sequence[str]) -> None:
    """Refuse one string instead of a list, and a list of none."""
    if isinstance(sources, str):
        raise TypeError(f"sources is the string {sources!r}; it must be a list of strings")
    if not sources:
        raise ValueError("data is empty; it must name at least one file, folder, pattern or hub:")


def check_kinds(columns: Sequence[Sequence[str]]) -> None:
    """Refuse parts whose rows are not of the same columns."""
    kinds = sorted({", ".join(names) for names in columns})
    if len(kinds) > 1:
        raise ValueError(f"data mixes rows of {' and of '.join(kinds)}; it must be of one kind")


def _load_source(source: str, text_column: str) -> list[Dataset]:
    if source.startswith(HUB_PREFIX):
        path, name, split = hub_address(source)
        loaded = load_dataset(path, name, split=split)
        return [_documents_only(loaded, text_column, f"data source {source!r}")]
    if is_saved(source):
        return [_documents_only(load_saved(source), text_column, f"data source {source!r}")]
    return [
        _load_files(builder, files, text_column)
        for builder, files in files_by_builder(source).items()
    ]


def is_saved(source: str) -> bool:
    """Whether `Dataset.save_to_disk` wrote the folder."""
    return any((Path(source).expanduser() / name).is_file() for name in _SAVED)


def local_files(sources: Sequence[str]) -> dict[str, int]:
    """The bytes of every file that the sources name; what `Dataset.save_to_disk` wrote counts too.

    Raises:
        ValueError: as `load_documents`.
    """
    check_sources(sources)
    paths = [
        path
        for source in sources
        if not source.startswith(HUB_PREFIX)
        for path in _matching_files(source)
    ]
    return {str(path): path.stat().st_size for path in paths}


def files_by_builder(source: str) -> dict[str, list[str]]:
    """Files that a path or pattern names, by the `datasets` builder that reads them."""
    files_of: dict[str, list[str]] = {}
    for file in _matching_files(source):
        files_of.setdefault(_builder(file), []).append(str(file))
    return files_of


def _matching_files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if is_prepared(path):
        raise ValueError(
            f"data source {source!r} holds token ids that lrk-data prepared, not documents"
        )
    if path.is_dir():
        root, pattern = path, "**/*"
    elif _GLOB_CHARACTERS & set(source):
        parts = path.parts
        first = next(i for i, part in enumerate(parts) if _GLOB_CHARACTERS & set(part))
        root, pattern = Path(*parts[:first]), str(Path(*parts[first:]))
    else:
        raise ValueError(f"data source {source!r} does not exist")
    files = sorted(
        file
        for file in root.glob(pattern)
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    if not files:
        raise ValueError(f"data source {source!r} holds no file")
    return files


def _builder(file: Path) -> str:
    """The `datasets` builder that reads the file, by its name without compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return _BUILDERS.get(suffixes[-1] if suffixes else "", "text")


def _load_files(builder: str, files: list[str], text_column: str) -> Dataset:
    try:
        loaded = load_dataset(**file_options(builder, files))
    except (DatasetGenerationError, pyarrow.ArrowInvalid) as error:
        raise ValueError(unreadable(builder, files, error)) from error
    column = "text" if builder == "text" else text_column
    return _documents_only(loaded, column, name_of(builder, files))


def file_options(builder: str, files: list[str]) -> dict[str, Any]:
    """Arguments of `load_dataset` for files of one builder."""
    options = {"sample_by": "document"} if builder == "text" else {}
    return {"path": builder, "data_files": files, "split": "train", **options}


def name_of(builder: str, files: list[str]) -> str:
    """How a sentence names files of one builder."""
    return f"data file {files[0]!r}" if len(files) == 1 else f"one of {len(files)} {builder} files"


def unreadable(builder: str, files: list[str], error: BaseException) -> str:
    """A sentence that names the damaged file if it can be found, else the files and the error."""
    damaged = _damaged_file(builder, files)
    return damaged or f"{name_of(builder, files)} cannot be read: {short(error.__cause__ or error)}"


def _damaged_file(builder: str, files: list[str]) -> str | None:
    """A sentence that names the first damaged file, and the line where it has lines."""
    for file in files:
        try:
            if builder == "parquet":
                pyarrow.parquet.ParquetFile(file).read()
            elif builder == "arrow":
                pyarrow.ipc.open_stream(file).read_all()
            elif builder == "json" and ".jsonl" in Path(file).name:
                with open_any(file, "rb", compression="infer") as lines:
                    for number, line in enumerate(lines, 1):
                        _check_json_line(line, f"line {number} of data file {file!r}")
        except (pyarrow.ArrowInvalid, OSError, EOFError) as error:
            return f"data file {file!r} is damaged: {short(error)}"
        except ValueError as error:
            return str(error)
    return None


def _check_json_line(line: bytes, what: str) -> None:
    if not line.strip():
        return
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {type(value).__name__}, not an object of named columns")


def short(error: BaseException) -> str:
    """The text of an error, in at most 200 characters of one line."""
    return textwrap.shorten(str(error), 200, placeholder=" ...")


def load_saved(source: str) -> Dataset:
    """What `Dataset.save_to_disk` wrote, memory-mapped; of several splits, `train`."""
    what = f"data source {source!r}"
    try:
        loaded = load_from_disk(str(Path(source).expanduser()))
    except (OSError, ValueError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{what} cannot be read: {short(error)}") from error
    if isinstance(loaded, DatasetDict):
        if "train" not in loaded:
            raise ValueError(f"{what} has the splits {', '.join(loaded)}; one must be train")
        loaded = loaded["train"]
    return loaded


def hub_address(source: str) -> tuple[str, str | None, str]:
    """Path, configuration and split that `hub:OWNER/NAME[/CONFIG][:SPLIT]` names."""
    name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    owner, _, rest = name.partition("/")
    dataset, _, config = rest.partition("/")
    if not (owner and dataset):
        raise ValueError(f"data source {source!r} must read hub:OWNER/NAME[/CONFIG][:SPLIT]")
    return f"{owner}/{dataset}", config or None, split or "train"


def columns_of_documents(names: Sequence[str], text_column: str, what: str) -> tuple[str, ...]:
    """Which of the columns are read: the text's, or those of conversations."""
    if text_column in names:
        return (text_column,)
    for kind in (MESSAGES, PROMPT):
        if set(kind) <= set(names):
            return kind
    raise ValueError(
        f"{what} has no column {text_column!r}; text_column must be one of "
        f"{', '.join(names)}, or the rows have messages or prompt and completion"
    )


def _documents_only(loaded: Dataset, text_column: str, what: str) -> Dataset:
    columns = columns_of_documents(loaded.column_names, text_column, what)
    if columns != (text_column,):
        return loaded.select_columns(list(columns))
    dtype = getattr(loaded.features[text_column], "dtype", None)
    if dtype not in ("string", "large_string"):
        raise ValueError(f"column {text_column!r} of {what} holds {dtype or 'lists'}, not text")
    texts = loaded.select_columns([text_column])
    if text_column != "text":
        texts = texts.rename_column(text_column, "text")
    return texts if texts.features == FEATURES else texts.cast(FEATURES)
