"""Moving tiles between memory and registers: by pointers and masks, or by tensor descriptors."""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


def is_described(arch: str, x: Tensor) -> bool:
    """Whether the tensor memory accelerator of `arch` can load tiles of a (B, H, S, D) tensor.

    sm_90, sm_100 and their kin have one. It wants a dense head dimension, and everything to begin
    at a multiple of 16 bytes. Triton 3.7 to 3.9 compute in 32 bits whether a tensor is small, which
    is described in its own way: one of 2 GiB or more could be taken for such.
    """
    *outer, last = _strides_of_used_axes(x)
    aligned = all(stride > 0 and stride * x.element_size() % 16 == 0 for stride in outer)
    span = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    fits = aligned and last == 1 and 0 <= span * x.element_size() < 2**31
    has_one = arch.startswith(("sm_9", "sm_10", "sm_11"))
    return has_one and x.numel() > 0 and fits and x.data_ptr() % 16 == 0


def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Describes (rows, D) tiles of a tensor to the tensor memory accelerator.

    Beyond the end of the tensor it reads zeros, but beyond that of a document the next document.
    """
    block = [1, 1, rows, max(triton.next_power_of_2(x.shape[3]), 16)]
    return TensorDescriptor(x, list(x.shape), _strides_of_used_axes(x), block)


def _strides_of_used_axes(x: Tensor) -> list[int]:
    """The strides, and a harmless one where an axis has length 1 and its stride no meaning."""
    return [
        stride if length > 1 or axis == 3 else 16
        for axis, (length, stride) in enumerate(zip(x.shape, x.stride(), strict=True))
    ]


@triton.jit
def document_offset(row, head, start, stride_b, stride_h, stride_s):
    """Elements from a tensor's beginning to a document's, in 64 bits: it can exceed 2^31."""
    row, head, start = tl.cast(row, tl.int64), tl.cast(head, tl.int64), tl.cast(start, tl.int64)
    return row * stride_b + head * stride_h + start * stride_s


@triton.jit
def load_tile(
    ptr,
    first,
    count,
    stride_s,
    stride_d,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WHOLE: tl.constexpr = False,
):
    """(BLOCK, BLOCK_D) rows from `first` of a document with `count` rows; zeros beyond its end.

    `WHOLE` promises that all rows are inside.
    """
    row = tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    # The scalar part alone can exceed 2^31.
    ptrs = ptr + tl.cast(first, tl.int64) * stride_s + row * stride_s + column * stride_d
    if WHOLE and BLOCK_D == HEAD_DIM:
        tile = tl.load(ptrs)
    elif WHOLE:
        tile = tl.load(ptrs, mask=column < HEAD_DIM, other=0.0)
    elif BLOCK_D == HEAD_DIM:
        tile = tl.load(ptrs, mask=first + row < count, other=0.0)
    else:
        tile = tl.load(ptrs, mask=(first + row < count) & (column < HEAD_DIM), other=0.0)
    return tile


@triton.jit
def load_described(desc, row, head, start, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """(BLOCK, BLOCK_D) rows from `start` of a batch row, through its tensor descriptor."""
    return tl.reshape(desc.load([row, head, start, 0]), [BLOCK, BLOCK_D])


@triton.jit
def store_tile(
    ptr,
    tile,
    first,
    count,
    stride_s,
    stride_d,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Store the rows that lie inside the document, in the dtype of the memory."""
    row = tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    ptrs = ptr + tl.cast(first, tl.int64) * stride_s + row * stride_s + column * stride_d
    inside = (first + row < count) & (column < HEAD_DIM)
    tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=inside)
