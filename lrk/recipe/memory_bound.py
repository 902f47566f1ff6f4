"""A bound on the memory that foreign code may take."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")


@contextmanager
def at_most(extra: int) -> Iterator[None]:
    """Let this process take so many bytes more inside of the block; beyond that, `MemoryError`.

    What is reserved and not written to is not counted. Where the system does not say what a process
    has (without /proc) there is no bound.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    has = _data_bytes()
    if has is None or (soft != resource.RLIM_INFINITY and soft < has + extra):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (has + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int | None:
    """Private writable memory of this process, which RLIMIT_DATA is about."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("VmData:")]
    return int(sizes[0]) * 1024 if sizes else None
