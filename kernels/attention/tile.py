"""Moving tiles between memory and registers, and scores: what all attention kernels share."""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .mask import Mask


def descriptor(x: Tensor, rows: int, arch: str, mask: Mask) -> TensorDescriptor | None:
    """What the tensor memory accelerator needs to load (rows, D) tiles of a (B, H, S, D) tensor.

    None where it cannot: before sm_90, elsewhere than on NVIDIA, and if the head dimension is not
    dense or anything begins off a multiple of 16 bytes. None too for documents and cut-off rows: it
    zeros what is beyond the tensor, not what is beyond a document, and a NaN there times a weight
    of 0 is NaN.
    """
    if mask.cu_seqlens is not None or mask.kv_lengths is not None:
        return None
    if not (arch.startswith(("sm_9", "sm_10")) and x.numel() and tma_strides(x)):
        return None
    block = [1, 1, rows, max(triton.next_power_of_2(x.shape[3]), 16)]
    return TensorDescriptor(x, list(x.shape), _strides_of_used_axes(x), block)


def tma_strides(x: Tensor) -> bool:
    """Whether the layout of `x` is one that a tensor memory accelerator addresses."""
    *outer, last = _strides_of_used_axes(x)
    size = x.element_size()
    aligned = all(stride > 0 and stride * size % 16 == 0 for stride in outer)
    return last == 1 and aligned and x.data_ptr() % 16 == 0


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


@triton.jit
def capped(products, softcap_scale):
    """Scores up to a factor: `q . k` as it is, or `tanh(q . k * scale / softcap)`."""
    if softcap_scale is not None:
        products = _tanh(products * softcap_scale)
    return products


@triton.jit
def _tanh(x):
    """tanh within 1.6e-7 relative; neither backend's own runs in the interpreter.

    From |x| = 0.625 on as `1 - 2 / (exp(2|x|) + 1)`; below, where that cancels, by a polynomial
    fitted at Chebyshev nodes.
    """
    decay = tl.exp2(-2.8853900817779268 * tl.abs(x))
    large = 1.0 - 2.0 * decay / (1.0 + decay)
    y = x * x
    series = 0.021003641188144684 - 0.006104947999119759 * y
    series = 0.13332782685756683 + y * (-0.05385249853134155 + y * series)
    series = y * (-0.333333283662796 + y * series)
    return tl.where(y < 0.390625, x + x * series, tl.where(x < 0, -large, large))
