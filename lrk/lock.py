"""One process at a time in a folder that is written to: the others are refused, or wait."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

PREFIX = ".lock"

# What file systems without locks say (NFS without its lock manager, some FUSE).
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

# Seconds from one look at a lock to the next.
_POLL = 0.2

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, part: str = "") -> Iterator[None]:
    """Make a folder and hold it for the block; a process that dies lets go, whatever it forked.

    Args:
        part: of the folder, where processes may work on several parts of it at a time.

    Raises:
        ValueError: if another process holds it.
    """
    lock = _lock(folder, part)
    try:
        _acquire(lock, folder)
    except Timeout as error:
        raise ValueError(
            f"another process is writing to {str(folder)!r}{part and f' ({part})'}: wait for its "
            "end, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def in_turn(folder: Path, what: str, part: str = "") -> Iterator[None]:
    """Make a folder and hold it for the block, after who holds it; there is no limit to the wait.

    So of several processes that need the same file one makes it, and the others find it. If it is
    killed, the next one takes over.

    Args:
        what: is done in the block, for the message of who waits.
        part: of the folder, as for `locked`.
    """
    lock = _lock(folder, part)
    try:
        _acquire(lock, folder)
    except Timeout:
        logger.info("another process is %s: this one waits for it", what)
        lock.acquire(poll_interval=_POLL)
    try:
        yield
    finally:
        lock.release()


def _lock(folder: Path, part: str) -> BaseFileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{PREFIX}{part and '-'}{part}")


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    """At once, or raise `Timeout`; without a lock, and with a warning, where there are none."""
    try:
        lock.acquire(timeout=0)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "the file system of %s has no locks: take care that no two processes write there",
            folder,
        )
