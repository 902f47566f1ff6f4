"""Numbers of every token of every sample, in a file: one row a sample, in the order of samples.

The tokens at one place of all samples are ranked against each other, so all must be at hand. On the
disk they may exceed the memory, and a killed analysis goes on with the first row that is missing.
A row ends with the CRC-32 of its bytes, so that one which was damaged since is missing too.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrk.atomic import SaveError

# Elements of one array that are in memory at a time.
_BLOCK = 2**22


class Rows:
    """(N, S) numbers that are appended row by row.

    From the first row on that is damaged, or that a kill cut short, all are dropped when the file
    is opened again.

    Args:
        path: the file, which is created with the first row.
        length: S.
        dtype: of the numbers.
    """

    def __init__(self, path: Path, length: int, dtype: DTypeLike) -> None:
        self._path = path
        self._length = length
        self._dtype = np.dtype(dtype)
        self._row = np.dtype([("numbers", self._dtype, (length,)), ("crc", "<u4")])
        if path.exists() and path.stat().st_size != (whole := self._whole() * self._row.itemsize):
            os.truncate(path, whole)

    def __len__(self) -> int:
        return self._path.stat().st_size // self._row.itemsize if self._path.exists() else 0

    def append(self, row: NDArray) -> None:
        """Add a row (S,) and wait until it is on the disk.

        Raises:
            SaveError: if it cannot be written; the rows before it are intact.
        """
        assert row.shape == (self._length,)
        numbers = row.astype(self._dtype).tobytes()
        try:
            with self._path.open("ab") as file:
                file.write(numbers + np.array(crc32(numbers), "<u4").tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SaveError(
                f"{str(self._path)!r} could not be written ({error.strerror}); the rows before are "
                "intact"
            ) from error

    def array(self) -> NDArray:
        """(N, S), mapped from the disk."""
        return np.memmap(self._path, self._row, mode="r", shape=(len(self),))["numbers"]

    def _whole(self) -> int:
        """How many rows at the head of the file are as they were written."""
        with self._path.open("rb") as file:
            for count in range(len(self)):
                numbers = file.read(self._row["numbers"].itemsize)
                if file.read(4) != np.array(crc32(numbers), "<u4").tobytes():
                    return count
        return len(self)


def column_blocks(samples: int, first: int, length: int) -> Iterator[slice]:
    """Slices of the places `first .. length - 1`, so narrow that N rows of one fit in memory."""
    width = max(_BLOCK // samples, 1)
    for start in range(first, length, width):
        yield slice(start, min(start + width, length))
