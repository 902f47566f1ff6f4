"""Numbers of every token of every sample, in a file: one row a sample, in the order of samples.

The tokens at one place of all samples are ranked against each other, so all must be at hand. On the
disk they may exceed the memory, and a killed analysis goes on with the first row that is missing.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrk.atomic import SaveError

# Elements of one array that are in memory at a time.
_BLOCK = 2**22


class Rows:
    """(N, S) numbers that are appended row by row.

    A row that a kill cut short is dropped when the file is opened again.

    Args:
        path: the file, which is created with the first row.
        length: S.
        dtype: of the numbers.
    """

    def __init__(self, path: Path, length: int, dtype: DTypeLike) -> None:
        self._path = path
        self._length = length
        self._dtype = np.dtype(dtype)
        self._row_bytes = length * self._dtype.itemsize
        if path.exists() and path.stat().st_size % self._row_bytes:
            os.truncate(path, len(self) * self._row_bytes)

    def __len__(self) -> int:
        return self._path.stat().st_size // self._row_bytes if self._path.exists() else 0

    def append(self, row: NDArray) -> None:
        """Add a row (S,) and wait until it is on the disk.

        Raises:
            SaveError: if it cannot be written; the rows before it are intact.
        """
        assert row.shape == (self._length,)
        try:
            with self._path.open("ab") as file:
                file.write(row.astype(self._dtype).tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SaveError(
                f"{str(self._path)!r} could not be written ({error.strerror}); the rows before are "
                "intact"
            ) from error

    def array(self) -> NDArray:
        """(N, S), mapped from the disk."""
        shape = (len(self), self._length)
        return np.memmap(self._path, self._dtype, mode="r", shape=shape)


def column_blocks(samples: int, first: int, length: int) -> Iterator[slice]:
    """Slices of the places `first .. length - 1`, so narrow that N rows of one fit in memory."""
    width = max(_BLOCK // samples, 1)
    for start in range(first, length, width):
        yield slice(start, min(start + width, length))
