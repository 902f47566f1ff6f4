"""Safetensors files, read and written in pieces.

The library of that name maps whole files into memory, and needs every tensor of a file at once to
write it. The format is simple: the length of a header in 8 bytes, the header in JSON (dtype, shape
and place of each tensor), then the bytes of the tensors. So a tensor is read block by block here,
and a file is written while its tensors are made.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        spans = {name: entry["data_offsets"] for name, entry in header.items()}
        ends = [end for _, end in spans.values()]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is cut off or no safetensors file") from error
    if 8 + length + max(ends, default=0) != size:
        raise ValueError(f"{path} has {size} bytes, its header says otherwise: it is cut off")
    tensors = {}
    for name in sorted(header, key=lambda name: spans[name]):
        dtype, shape = header[name]["dtype"], tuple(header[name]["shape"])
        if dtype not in DTYPES:
            raise ValueError(
                f"{path}: {name} has dtype {dtype}; only {', '.join(DTYPES)} can be merged"
            )
        first, end = spans[name]
        tensors[name] = StoredTensor(path, DTYPES[dtype], shape, 8 + length + first)
        if end - first != tensors[name].numel() * DTYPES[dtype].itemsize:
            raise ValueError(f"{path}: {name} has {end - first} bytes, not those of its shape")
    return tensors


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
