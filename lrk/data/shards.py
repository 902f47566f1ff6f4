"""Folders of shards that any number of processes and machines write, and that a kill cannot harm.

What a shard holds follows from the inputs, the arguments and its number. So any process can make
any shard, in any order, and the folder is the same. A shard is written under a temporary name and
renamed when it is complete; a run makes those that are missing. The run that finds none missing
hashes them all and completes the manifest.
"""

import os
import platform
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from itertools import zip_longest
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, Features

from lrk import atomic
from lrk.lock import PREFIX as LOCKS
from lrk.recipe.prepared import (
    MANIFEST_FILE,
    Manifest,
    Shard,
    faults,
    is_prepared,
    read_manifest,
    sha256_of,
    shard_name,
)
from lrk.recipe.samples import document_lengths
from lrk.share import Share
from lrk.versions import installed_version

Columns = Mapping[str, list[Any]]
# Makes the columns of a shard, some documents at a time, from what describes it.
Make = Callable[[Any], Iterator[Columns]]


def shard_path(folder: Path, number: int) -> Path:
    return folder / shard_name(number)


def versions() -> dict[str, str]:
    """What token ids and files may depend on."""
    packages = ("lrk", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
    found = {name: installed_version(name) or "not installed" for name in packages}
    return {"python": platform.python_version(), **found}


def check_free(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder that holds something else, before documents are read and locks written.

    Raises:
        ValueError: as `begin`, inputs aside.
    """
    what = f"output_dir {str(folder)!r}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{what} is a file; it must be a folder")
    if folder.is_dir() and not is_prepared(folder) and any(map(_is_whole, folder.iterdir())):
        raise ValueError(f"{what} holds something else; choose another folder")
    if is_prepared(folder):
        _check_same(folder, read_manifest(folder), manifest)


def begin(folder: Path, manifest: Manifest) -> Manifest:
    """Note in an empty folder what it will hold, or check that it is the one that was begun.

    Args:
        folder: that passed `check_free`.

    Returns:
        The manifest of the folder.

    Raises:
        ValueError: if the folder was begun from other arguments, inputs or by another tokenizer,
            naming the first difference.
    """
    if is_prepared(folder):
        begun = read_manifest(folder)
        _check_same(folder, begun, manifest)
        _check_inputs(folder, begun, manifest)
        return begun
    atomic.write_text(folder / MANIFEST_FILE, manifest.to_json())
    return manifest


def remove_damaged(folder: Path, manifest: Manifest) -> list[str]:
    """Delete the shards of a finished folder that are not what its manifest says; say which."""
    damaged = faults(folder, manifest.shards or [])
    for file in damaged:
        (folder / file).unlink(missing_ok=True)
    return list(damaged.values())


def make_missing(
    folder: Path,
    tasks: Iterable[tuple[int, Any]],
    make: Make,
    features: Features,
    share: Share,
    num_proc: int,
) -> None:
    """Write the shards of this share that do not exist yet.

    Args:
        tasks: the number of each shard and what `make` needs to make it; read to the end.
        num_proc: processes that make shards; 1 works in this one. About two tasks for each are in
            memory.

    Raises:
        concurrent.futures.process.BrokenProcessPool: if one of the processes is killed.
    """
    wanted = (
        (shard_path(folder, number), task)
        for number, task in tasks
        if share.has(number) and not shard_path(folder, number).exists()
    )
    if num_proc == 1:
        for path, task in wanted:
            _write(path, task, make, features)
        return
    with ProcessPoolExecutor(num_proc, get_context("spawn"), _start_worker) as pool:
        waiting: deque[Future[None]] = deque()
        for path, task in wanted:
            waiting.append(pool.submit(_write, path, task, make, features))
            if len(waiting) > 2 * num_proc:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def seal(
    folder: Path, manifest: Manifest, count: int, totals: Callable[[Dataset], Mapping[str, int]]
) -> Manifest | None:
    """Complete the manifest if all `count` shards are there; None if not.

    Args:
        totals: numbers of one shard, whose sums over all shards join the summary.

    Raises:
        ValueError: if the folder was complete before and a shard that was made anew is another, or
            there are more shards than there should be.
    """
    paths = [shard_path(folder, number) for number in range(count)]
    if not all(path.exists() for path in paths):
        return None
    if beyond := sorted(set(folder.glob("documents-*.arrow")) - set(paths)):
        raise ValueError(f"{str(beyond[0])!r} is one shard too many: the inputs make {count}")
    shards = [_describe(path) for path in paths]
    if not any(shard.documents for shard in shards):
        named = ", ".join(map(repr, manifest.sources))
        raise ValueError(f"none of the documents of {named} holds text")
    if manifest.shards is not None:
        for old, new in zip_longest(manifest.shards, shards):
            if old != new:
                raise ValueError(
                    f"shard {(new or old).file!r} of {str(folder)!r} was made anew and is not what "
                    f"{MANIFEST_FILE} says: the inputs or the versions of packages have changed; "
                    "prepare them in another folder"
                )
        return manifest
    sums = Counter(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
    )
    for path in paths:
        sums.update(totals(Dataset.from_file(str(path))))
    sealed = replace(manifest, shards=shards, summary={**(manifest.summary or {}), **sums})
    atomic.write_text(folder / MANIFEST_FILE, sealed.to_json())
    return sealed


def _is_whole(path: Path) -> bool:
    """False for a lock, and for a temporary, of a process that writes or was killed."""
    return not path.name.startswith((atomic.PREFIX, LOCKS))


def _check_same(folder: Path, begun: Manifest, wanted: Manifest) -> None:
    what, hint = _begun(folder)
    if begun.command != wanted.command:
        raise ValueError(f"{what} by lrk-data {begun.command}; {hint}")
    for name in wanted.arguments:
        old, new = begun.arguments.get(name), wanted.arguments[name]
        if old != new and name != "tokenizer":
            raise ValueError(f"{what} with {name} {old!r}, which is now {new!r}; {hint}")
    if begun.tokenizer != wanted.tokenizer:
        raise ValueError(
            f"{what} with another tokenizer, {begun.arguments.get('tokenizer')!r}; {hint}"
        )


def _check_inputs(folder: Path, begun: Manifest, wanted: Manifest) -> None:
    what, hint = _begun(folder)
    for name in sorted({*begun.inputs, *wanted.inputs}):
        old, new = begun.inputs.get(name), wanted.inputs.get(name)
        if old != new:
            raise ValueError(f"{what} when input {name!r} was another ({old}, now {new}); {hint}")


def _begun(folder: Path) -> tuple[str, str]:
    return (
        f"output_dir {str(folder)!r} was begun",
        "choose another folder, or delete this one",
    )


def _write(path: Path, task: Any, make: Make, features: Features) -> None:
    schema = features.arrow_schema
    atomic.remove_temporaries(path.parent, path.name)
    with (
        atomic.atomic_file(path) as temporary,
        pyarrow.OSFile(str(temporary), "wb") as file,
        pyarrow.ipc.new_stream(file, schema) as stream,
    ):
        for columns in make(task):
            stream.write_batch(pyarrow.RecordBatch.from_pydict(columns, schema))


def _describe(path: Path) -> Shard:
    documents = Dataset.from_file(str(path))
    return Shard(
        file=path.name,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        documents=len(documents),
        tokens=int(document_lengths(documents).sum()),
    )


def _start_worker() -> None:
    """End with the process that started this one, even if that is killed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker is one of num_proc already
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
