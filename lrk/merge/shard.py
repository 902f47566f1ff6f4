"""Safetensors files, read and written in pieces.

The library of that name maps whole files into memory, and needs every tensor of a file at once to
write it. The format is simple: the length of a header in 8 bytes, the header in JSON (dtype, shape
and place of each tensor), then the bytes of the tensors, one after the other without gaps. So a
tensor is read block by block here, and a file is written while its tensors are made.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
BLOCK = 2**18
"""Elements that are read at once: 2 MiB in float64."""

# As the library has it: a length that is read from a damaged file may be anything.
_LONGEST_HEADER = 100_000_000


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    def numel(self) -> int:
        return math.prod(self.shape)

    def blocks(self) -> Iterator[Tensor]:
        """Its elements in order, flat, `BLOCK` at a time, in float64."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, self.numel(), BLOCK):
                count = min(BLOCK, self.numel() - start)
                buffer = bytearray(count * self.dtype.itemsize)
                if file.readinto(buffer) != len(buffer):
                    raise OSError(f"{self.file} became shorter while it was read")
                yield torch.frombuffer(buffer, dtype=self.dtype).double()


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, in the order of their bytes.

    Raises:
        ValueError: for a file that is cut off or no safetensors file, and for a tensor that is not
            of floating point with 16, 32 or 64 bits, as in a quantised model.
    """
    size = path.stat().st_size
    header, start = _header(path, size)
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    tensors = {}
    end = 0
    for name, (dtype, shape, first, last) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if dtype not in DTYPES:
            raise ValueError(
                f"{path}: {name!r} has dtype {dtype!r}; only {', '.join(DTYPES)} can be merged"
            )
        if first != end:
            raise ValueError(
                f"{path}: {name!r} begins at byte {first}, and what is before it ends at {end}; "
                "tensors must neither overlap nor leave gaps"
            )
        tensors[name] = StoredTensor(path, DTYPES[dtype], shape, start + first)
        if last - first != tensors[name].numel() * DTYPES[dtype].itemsize:
            raise ValueError(f"{path}: {name!r} has {last - first} bytes, not those of its shape")
        end = last
    if start + end != size:
        raise ValueError(f"{path} has {size} bytes, its header says otherwise: it is cut off")
    return tensors


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The entries of the tensors, and where in the file their bytes begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= min(size, _LONGEST_HEADER) else b""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        notes = header.pop("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(each, str) for each in notes.values()):
            raise ValueError("its metadata are no texts by name")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is cut off or no safetensors file: {error}") from error
    return header, 8 + length


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in its header")
    for pair in pairs:
        for text in pair:
            if isinstance(text, str):
                text.encode("utf-8")  # half of a surrogate pair, which the library refuses
    return found


def _entry(path: Path, name: str, value: Any) -> tuple[Any, tuple[int, ...], int, int]:
    """Dtype, shape and span of a tensor."""
    try:
        dtype, shape, (first, last) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, first, last]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name!r} is {value!r}, which describes no tensor") from error
    # A truth value is an integer for Python.
    if not all(type(number) is int and number >= 0 for number in numbers) or first > last:
        raise ValueError(f"{path}: {name!r} is {value!r}, which describes no tensor")
    return dtype if isinstance(dtype, str) else None, tuple(shape), first, last


def write_header(file: BinaryIO, tensors: Mapping[str, StoredTensor]) -> None:
    """The header of a file that will hold tensors of these dtypes and shapes, in this order."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (_, dtype, shape, _) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)


def write_blocks(file: BinaryIO, blocks: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Flat blocks of one tensor after the other, rounded to `dtype`."""
    for block in blocks:
        file.write(block.to(dtype).view(torch.uint8).numpy().data)
