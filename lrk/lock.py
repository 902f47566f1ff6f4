"""One process at a time in a folder that is written to."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = ".lock"

# What file systems without locks say (NFS without its lock manager, some FUSE).
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, part: str = "") -> Iterator[None]:
    """Make a folder and hold it for the block; a process that dies lets go, whatever it forked.

    Args:
        part: of the folder, where processes may work on several parts of it at a time.

    Raises:
        ValueError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{PREFIX}{part and '-'}{part}")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another process is writing to {str(folder)!r}{part and f' ({part})'}: wait for its "
            "end, or choose another folder"
        ) from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "the file system of %s has no locks: take care that no two processes write there",
            folder,
        )
    try:
        yield
    finally:
        lock.release()
