"""Moving tiles between memory and registers, and scores: what all attention kernels share."""

import triton
import triton.language as tl


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
        return tl.load(ptrs)
    if WHOLE:
        return tl.load(ptrs, mask=column < HEAD_DIM, other=0.0)
    if BLOCK_D == HEAD_DIM:
        return tl.load(ptrs, mask=first + row < count, other=0.0)
    return tl.load(ptrs, mask=(first + row < count) & (column < HEAD_DIM), other=0.0)


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
    if softcap_scale is None:
        return products
    return _tanh(products * softcap_scale)


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
