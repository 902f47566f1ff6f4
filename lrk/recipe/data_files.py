"""Data files: which ones a source names, and the hashes by which their content is known again.

A source may end with the name of the column that holds its texts, `reviews.parquet#body`.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from lrk.recipe.prepared import in_parallel, is_prepared, sha256_of

HUB_PREFIX = "hub:"
COLUMN_MARK = "#"

_GLOB_CHARACTERS = frozenset("*?[")
_SAVED = ("state.json", "dataset_dict.json")  # by Dataset.save_to_disk, DatasetDict.save_to_disk


class Source(NamedTuple):
    """Where documents lie, and the column that holds their texts."""

    place: str
    text_column: str


def source_of(source: str, text_column: str = "text") -> Source:
    """What a source says: what stands behind its last `#` is its column, in place of `text_column`.

    Where a file or folder has that very name, or none has that before the `#`, it is part of the
    name; so it is in a pattern that goes on behind it.

    Raises:
        ValueError: if nothing stands before or behind it.
    """
    place, mark, column = source.rpartition(COLUMN_MARK)
    if not mark or Path(source).expanduser().exists():
        return Source(source, text_column)
    if not (place and column):
        raise ValueError(f"data source {source!r} must read PLACE#COLUMN, or have no '#'")
    is_found = place.startswith(HUB_PREFIX) or Path(place).expanduser().exists()
    if is_found or (_is_pattern(place) and not _is_pattern(column)):
        return Source(place, column)
    return Source(source, text_column)


def check_sources(sources: Sequence[str]) -> None:
    """Refuse one string instead of a list, and a list of none."""
    if isinstance(sources, str):
        raise TypeError(f"sources is the string {sources!r}; it must be a list of strings")
    if not sources:
        raise ValueError("data is empty; it must name at least one file, folder, pattern or hub:")


def is_saved(source: str) -> bool:
    """Whether `Dataset.save_to_disk` wrote the folder."""
    return any((Path(source).expanduser() / name).is_file() for name in _SAVED)


def data_files(source: str) -> list[Path]:
    """The files that a path or pattern names, in the order of their names.

    Below a folder, and for `**`, every folder is searched once, also where links lead to it. What
    begins with a dot is found only where the source says so.

    Raises:
        ValueError: if it names none, a folder cannot be read, or a link leads nowhere.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if is_prepared(path):
        raise ValueError(
            f"data source {source!r} holds token ids that lrk-data prepared, not documents"
        )
    if path.is_dir():
        root, parts = path, ["**", "*"]
    elif _is_pattern(source):
        first = next(i for i, part in enumerate(path.parts) if _is_pattern(part))
        root, parts = Path(*path.parts[:first]), list(path.parts[first:])
    elif path.exists():
        raise ValueError(f"data source {source!r} is neither a file nor a folder")
    else:
        raise ValueError(f"data source {source!r} does not exist")
    files = sorted(set(_matching(root, parts)) if root.is_dir() else ())
    if not files:
        raise ValueError(f"data source {source!r} holds no file")
    return files


def content_hashes(sources: Sequence[str]) -> dict[str, str]:
    """SHA-256 of every file that the sources name, what `Dataset.save_to_disk` wrote included.

    Raises:
        ValueError: as `load_documents`.
    """
    check_sources(sources)
    places = [source_of(source).place for source in sources]
    paths = [
        path for place in places if not place.startswith(HUB_PREFIX) for path in data_files(place)
    ]
    return dict(zip(map(str, paths), in_parallel(_hash, paths), strict=True))


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise ValueError(f"data file {str(path)!r} cannot be read: {error.strerror}") from error


def _is_pattern(text: str) -> bool:
    return bool(_GLOB_CHARACTERS & set(text))


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Files below a folder whose path is matched by a pattern, part by part."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below in _folders(folder, set()):
            yield from _matching(below, rest or ["*"])
        return
    entries = _entries(folder, part) if _is_pattern(part) else [folder / part]
    for entry in entries:
        if rest and entry.is_dir():
            yield from _matching(entry, rest)
        elif not rest and entry.is_file():
            yield entry


def _folders(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """A folder and those below it, each once."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    yield folder
    for entry in _entries(folder, "*"):
        if entry.is_dir():
            yield from _folders(entry, seen)


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from error
    found = [
        entry
        for entry in entries
        if fnmatchcase(entry.name, pattern)
        and (pattern.startswith(".") or not entry.name.startswith("."))
    ]
    for entry in found:
        if entry.is_symlink() and not entry.exists():
            raise ValueError(f"{str(entry)!r} is a link that leads nowhere")
    return found
