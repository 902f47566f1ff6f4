"""Files and folders that are written whole or not at all, whatever moment the process is killed.

Everything goes to a temporary beside its place and is renamed into it: on a POSIX file system a
rename happens at once. A process that is killed in between leaves the old content and a temporary,
which the next run of the folder deletes. No two temporaries have one name, so that processes which
write beside each other never mix their files; `lrk.lock` keeps them out of each other's folders.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lrk.weight_index import INDEX

PREFIX = ".partial-"


class SaveError(OSError):
    """Something could not be written; what was there before is untouched."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is `path` after the block.

    Raises:
        SaveError: if it cannot be written (a full disk, no permission).
    """
    temporary = _beside(path)
    with _removed_on_failure(temporary, path):
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """`path.write_text` in UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a new temporary folder, which is `path` after the block; it replaces a `path` of old.

    Args:
        temporary: its place, where several processes of one run must know it.

    Raises:
        SaveError: as `atomic_file`.
    """
    temporary = temporary or _beside(path)
    with _removed_on_failure(temporary, path):
        remove(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary, path)


def publish(folder: Path, path: Path) -> None:
    """Rename a folder that is complete to `path`, in place of what is there."""
    for file in folder.rglob("*"):
        _to_disk(file)
    old = _set_aside(path) if path.exists() else None
    os.replace(folder, path)
    _to_disk(path.parent)
    if old is not None:
        remove(old)


@contextmanager
def files_moved_into(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder, whose files are moved into `folder` after the block.

    They are moved one by one, the index of a model last. A model in one file (transformers splits
    at 50 GB) is the old or the new one at any moment. One in several files has no index in between,
    without which its files are not loaded, so a mixture of two models never is.

    Raises:
        SaveError: as `atomic_file`.
    """
    temporary = _beside(folder / "model")
    with _removed_on_failure(temporary, folder):
        remove(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _to_disk(file)
        (folder / INDEX).unlink(missing_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda file: (file.name == INDEX, file)):
            os.replace(file, folder / file.name)
        _to_disk(folder)
        temporary.rmdir()


def remove(path: Path) -> None:
    """Delete a file or folder; a folder is renamed first, so that it is never seen in part."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path if path.name.startswith(PREFIX) else _set_aside(path))
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path, of: str | None = None) -> None:
    """Delete what a killed process left half written in a folder, of all names or of one."""
    for path in folder.glob(f"{PREFIX}*"):
        if of is None or re.fullmatch(rf"[0-9a-f]{{8}}-{re.escape(of)}", path.name[len(PREFIX) :]):
            remove(path)


@contextmanager
def _removed_on_failure(temporary: Path, path: Path) -> Iterator[None]:
    try:
        yield
    # PyTorch and safetensors report a failed write as errors of their own.
    except (OSError, RuntimeError, SafetensorError) as error:
        remove(temporary)
        reason = " ".join(str(error).split())
        raise SaveError(
            f"{str(path)!r} could not be saved ({reason}); everything saved before is intact"
        ) from error
    except BaseException:
        remove(temporary)
        raise


def _beside(path: Path) -> Path:
    """A name that nothing else has."""
    return path.with_name(f"{PREFIX}{secrets.token_hex(4)}-{path.name}")


def _set_aside(path: Path) -> Path:
    """Rename what is there to a temporary."""
    return path.rename(_beside(path))


def _to_disk(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk, against a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
