"""Prepared data: folders of token ids that `lrk-data` wrote, memory-mapped where they lie.

A folder holds `documents-00000.arrow` and so on, Arrow streams with the columns of `tokenize` and
`source`, and `manifest.json`, which says what they were made from and what their hashes are.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import pyarrow
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.field_types import check_types
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.share import Share

MANIFEST_FILE = "manifest.json"
FORMAT = "lrk prepared 1"
_READERS = 8

X = TypeVar("X")
Y = TypeVar("Y")


@dataclass(frozen=True)
class Shard:
    """One file of a folder: its name, bytes, SHA-256, and what it holds."""

    file: str
    bytes: int
    sha256: str
    documents: int
    tokens: int

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class Manifest:
    """What a folder holds and how it was made.

    Attributes:
        command: `prepare` or `select`.
        arguments: those that the content follows from.
        tokenizer: its fingerprint.
        inputs: bytes of each local file that was read, or the hash of the manifest that was.
        sources: names, to which the column `source` points.
        versions: of what wrote the manifest.
        shards: None while some are missing.
        summary: counts for people.
    """

    command: str
    arguments: Mapping[str, Any]
    tokenizer: str
    inputs: Mapping[str, int | str]
    sources: Sequence[str]
    versions: Mapping[str, str]
    shards: Sequence[Shard] | None = None
    summary: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        """Shards have the names of their numbers: no other file is opened, or deleted as damaged.

        Raises:
            ValueError: if they have not, or do not add up to the summary.
        """
        check_types(self)
        if self.shards is None:
            return
        for number, shard in enumerate(self.shards):
            if shard.file != (name := shard_name(number)):
                raise ValueError(f"shard {number} is {shard.file!r}; it must be {name!r}")
        for name in ("documents", "tokens"):
            total = sum(getattr(shard, name) for shard in self.shards)
            if (self.summary or {}).get(name) != total:
                raise ValueError(
                    f"summary has {(self.summary or {}).get(name)!r} {name}, and the shards {total}"
                )

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1) + "\n"


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"documents-{number:05d}.arrow"


def is_prepared(source: str | Path) -> bool:
    """Whether a folder was prepared by `lrk-data`, in whole or in part."""
    try:
        return _content(Path(source).expanduser()).get("format") == FORMAT
    except (OSError, ValueError, RecursionError):
        return False


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder that `is_prepared`.

    Raises:
        ValueError: if it lacks something.
    """
    what = f"{MANIFEST_FILE} of {str(folder)!r}"
    content = _content(Path(folder).expanduser())
    try:
        content.pop("format")
        if content["shards"] is not None:
            content["shards"] = [Shard(**shard) for shard in list(content["shards"])]
        manifest = Manifest(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{what} is damaged: {' '.join(str(error).split())}") from error
    return manifest


def open_prepared(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, share: Share | None = None
) -> Dataset:
    """Join prepared folders in the given order, without a copy. Every hash is checked first.

    Args:
        share: of the hashes, where other processes check the rest, and none goes on if one raises.

    Returns:
        A data set with the columns of `tokenize` and `source` () int32, a source of its folder.

    Raises:
        ValueError: if a folder is not prepared or not finished, is of another tokenizer, or lacks
            a shard or has a damaged one; or if the columns of two folders differ.
    """
    fingerprint = tokenizer_fingerprint(tokenizer)
    parts: list[Dataset] = []
    for source in sources:
        if not is_prepared(source):
            raise ValueError(f"data source {source!r} is not prepared; run lrk-data prepare first")
        manifest = read_manifest(source)
        if manifest.tokenizer != fingerprint:
            raise ValueError(
                f"{source!r} was prepared with another tokenizer than {tokenizer.name_or_path!r} "
                f"({manifest.arguments.get('tokenizer')!r}); prepare the documents with this one"
            )
        parts.append(open_shards(Path(source).expanduser(), manifest, share))
    columns = sorted({", ".join(part.column_names) for part in parts})
    if len(columns) > 1:
        raise ValueError(f"data mixes columns {' and '.join(columns)}; it must be of one kind")
    return concatenate_datasets(parts)


def open_shards(folder: Path, manifest: Manifest, share: Share | None = None) -> Dataset:
    """The documents of one folder.

    Args:
        share: of the hashes to check; all by default.

    Raises:
        ValueError: if it is not finished, or a shard is missing or damaged.
    """
    if manifest.shards is None:
        raise ValueError(
            f"{str(folder)!r} is not finished: run lrk-data {manifest.command} again, which makes "
            "the shards that are missing"
        )
    for fault in faults(folder, manifest.shards, share).values():
        raise ValueError(
            f"{fault}; run lrk-data {manifest.command} again, which makes this shard alone"
        )
    return concatenate_datasets([_opened(folder, shard) for shard in manifest.shards])


def _opened(folder: Path, shard: Shard) -> Dataset:
    path = str(folder / shard.file)
    try:
        documents = Dataset.from_file(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"shard {path!r} cannot be read: {error}") from error
    if len(documents) != shard.documents:
        raise ValueError(
            f"shard {path!r} has {len(documents):,} documents in place of {shard.documents:,}"
        )
    return documents


def faults(folder: Path, shards: Sequence[Shard], share: Share | None = None) -> dict[str, str]:
    """What is wrong with which shard, by file; empty if nothing is.

    Args:
        share: of the hashes to check; all by default. Sizes are always checked.
    """
    whole = share or Share()

    def fault(shard: Shard) -> str | None:
        # By its hash, so that folders of a single shard are divided too.
        is_hashed = whole.has(crc32(shard.sha256.encode()))
        return _fault(folder / shard.file, shard, is_hashed)

    found = in_parallel(fault, shards)
    return {
        shard.file: fault for shard, fault in zip(shards, found, strict=True) if fault is not None
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_parallel(function: Callable[[X], Y], items: Iterable[X]) -> list[Y]:
    """What a function that reads a file makes of each item, several files at a time."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(function, items))


def source_numbers(documents: Dataset) -> NDArray[np.int64]:
    """(D,) the source of each document."""
    return np.asarray(documents.with_format("numpy")["source"][:], dtype=np.int64)


def _fault(path: Path, shard: Shard, is_hashed: bool) -> str | None:
    if not path.is_file():
        return f"shard {str(path)!r} is missing"
    if (size := path.stat().st_size) != shard.bytes:
        return f"shard {str(path)!r} is damaged: it has {size:,} bytes in place of {shard.bytes:,}"
    if is_hashed and sha256_of(path) != shard.sha256:
        return f"shard {str(path)!r} is damaged: its hash is not that of {MANIFEST_FILE}"
    return None


def _content(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
