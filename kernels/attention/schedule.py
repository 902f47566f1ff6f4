"""Which tile a program works on, and which tiles of the other side it has to visit.

Shared by the forward and both backward kernels. Indices are local to a document: query `i` of a
document sits at its key index `p = offset + i`, and lies at `q_start + i` in its batch row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .mask import Mask

RECORD = tl.constexpr(8)
"""int32 entries of a tile's record: row, first, q_start, q_length, k_start, k_length; rest unused.

`first` is the tile's first query (key) in its document, `row` is -1 for a tile without work.
"""


def document_tiles(mask: Mask, q: Tensor, k: Tensor, block: int, of_keys: bool) -> Tensor | None:
    """(tiles, 8) int32 records of the tiles of all documents, made on the device without a sync.

    The number of tiles depends on the lengths of the documents, which the host does not know. But
    if document n starts at tile `cu_seqlens[n] // block + n`, documents never overlap, and all end
    by tile `tokens // block + N`; the at most N tiles in between have no work.
    """
    if mask.cu_seqlens is None or mask.cu_seqlens_k is None:
        return None
    documents = mask.cu_seqlens.shape[0] - 1
    x = k if of_keys else q
    tiles = x.shape[0] * x.shape[2] // block + documents
    table = torch.empty(tiles, RECORD.value, dtype=torch.int32, device=q.device)
    if tiles:
        _document_tiles[(triton.cdiv(tiles, 128),)](
            table_ptr=table,
            cu_q_ptr=mask.cu_seqlens,
            cu_k_ptr=mask.cu_seqlens_k,
            stride_cu_q=mask.cu_seqlens.stride(0),
            stride_cu_k=mask.cu_seqlens_k.stride(0),
            documents=documents,
            tiles=tiles,
            rows=q.shape[0],
            q_length=q.shape[2],
            k_length=k.shape[2],
            OF_KEYS=of_keys,
            BLOCK=block,
            TILES=128,
            enable_fp_fusion=True,
        )
    return table


def grid(table: Tensor | None, x: Tensor, block: int) -> tuple[int]:
    """A program for each tile of a (B, H, S, D) tensor, or of its table, and each head.

    One axis holds them all: the others end at 65,535. See `program`.
    """
    batch, heads, length, _ = x.shape
    tiles = triton.cdiv(length, block) * batch if table is None else table.shape[0]
    return (tiles * heads,)


CACHED = 32 << 20
"""Bytes of a GPU's cache that the tensors of the loops may take: an H100 has 50 MB, an A100 40."""


def heads_together(x: Tensor, heads: int) -> int:
    """How many of the `heads` run together: as many as share what they read through the cache.

    Two (B, H, S, D) tensors like `x` are read in the loops, and those of a head by all its tiles.
    A divisor of the heads, at least 1.
    """
    read = 2 * x.shape[2] * x.shape[3] * x.element_size()
    fitting = (n for n in range(heads, 1, -1) if heads % n == 0 and n * read <= CACHED)
    return next(fitting, 1)


@triton.jit(do_not_specialize=["documents", "tiles", "rows", "q_length", "k_length"])
def _document_tiles(
    table_ptr,
    cu_q_ptr,
    cu_k_ptr,
    stride_cu_q,
    stride_cu_k,
    documents,
    tiles,
    rows,
    q_length,
    k_length,
    OF_KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    cu_ptr = cu_k_ptr if OF_KEYS else cu_q_ptr
    stride_cu = stride_cu_k if OF_KEYS else stride_cu_q
    # The last document that starts at or before the tile, by bisection.
    document = tl.zeros([TILES], tl.int32)
    above = tl.zeros([TILES], tl.int32) + documents
    width = documents
    while width > 0:
        middle = (document + above) // 2
        starts = tl.load(cu_ptr + middle * stride_cu).to(tl.int32) // BLOCK + middle
        before = starts <= tile
        document = tl.where(before, middle, document)
        above = tl.where(before, above, middle)
        width = width // 2

    q_start = tl.load(cu_q_ptr + document * stride_cu_q).to(tl.int32)
    q_count = tl.load(cu_q_ptr + (document + 1) * stride_cu_q).to(tl.int32) - q_start
    k_start = tl.load(cu_k_ptr + document * stride_cu_k).to(tl.int32)
    k_count = tl.load(cu_k_ptr + (document + 1) * stride_cu_k).to(tl.int32) - k_start
    start = k_start if OF_KEYS else q_start
    count = k_count if OF_KEYS else q_count
    first = (tile - start // BLOCK - document) * BLOCK
    row = start // (k_length if OF_KEYS else q_length)
    # Wrong ends must not reach memory outside of the row, nor a row that is not there.
    q_start = tl.maximum(q_start - row * q_length, 0)
    k_start = tl.maximum(k_start - row * k_length, 0)
    q_count = tl.minimum(q_count, q_length - q_start)
    k_count = tl.minimum(k_count, k_length - k_start)

    record = table_ptr + tile * RECORD
    inside = tile < tiles
    has_work = (first < count) & (row >= 0) & (row < rows)
    tl.store(record, tl.where(has_work, row, -1), mask=inside)
    tl.store(record + 1, first, mask=inside)
    tl.store(record + 2, q_start, mask=inside)
    tl.store(record + 3, q_count, mask=inside)
    tl.store(record + 4, k_start, mask=inside)
    tl.store(record + 5, k_count, mask=inside)


@triton.jit
def program(heads, rows, together, LAST_FIRST: tl.constexpr):
    """(tile, row, head) of this program.

    Heads go by sections of so many `together`. In a section they are the fastest axis and tiles the
    slowest: under causality the work of a tile grows or shrinks along the sequence, and the heavy
    tiles of all its heads start before the light ones of any. Sections, as in FlashAttention-3
    (arXiv 2407.08608), are as large as the cache holds what their tiles read in turn.
    """
    index = tl.program_id(0)
    tiles = tl.num_programs(0) // heads // rows
    section = index // (tiles * together)
    inside = index % (tiles * together)
    tile = inside // together
    if LAST_FIRST:
        tile = tiles - 1 - tile
    line = section * together + inside % together
    return tile, line // heads, line % heads


@triton.jit
def locate(
    tile,
    row,
    tiles_ptr,
    kv_lengths_ptr,
    q_offsets_ptr,
    stride_kv_lengths,
    stride_q_offsets,
    q_offset,
    q_length,
    k_length,
    BLOCK: tl.constexpr,
):
    """(row, first, q_start, q_count, k_start, k_count, offset) of a tile of queries or of keys."""
    if tiles_ptr is not None:
        record = tiles_ptr + tile * RECORD
        row = tl.load(record)
        first = tl.load(record + 1)
        q_start = tl.load(record + 2)
        q_count = tl.load(record + 3)
        k_start = tl.load(record + 4)
        k_count = tl.load(record + 5)
        offset = k_count - q_count
    else:
        first = tile * BLOCK
        q_start = 0
        k_start = 0
        q_count = q_length
        k_count = k_length
        if kv_lengths_ptr is not None:
            k_count = tl.load(kv_lengths_ptr + row * stride_kv_lengths).to(tl.int32)
            k_count = tl.maximum(tl.minimum(k_count, k_length), 0)
        offset = q_offset
        if q_offsets_ptr is not None:
            offset = tl.load(q_offsets_ptr + row * stride_q_offsets).to(tl.int32)
    return row, first, q_start, q_count, k_start, k_count, offset


@triton.jit
def key_range(
    p_first,
    p_last,
    k_count,
    window,
    positions_ptr,
    stride_position,
    position_count,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(start, inner_start, inner_end, end) of the keys for queries at `p_first` to `p_last`.

    No query sees a key outside [start, end), and every query sees all of [inner_start, inner_end),
    which may be empty. All but `end` are multiples of BLOCK.
    """
    start = 0
    inner_start = 0
    end = k_count
    inner_end = k_count
    if CAUSAL:
        end = tl.maximum(tl.minimum(k_count, p_last + 1), 0)
        inner_end = tl.maximum(tl.minimum(k_count, p_first + 1), 0)
    if window is not None:
        if positions_ptr is None:
            start = tl.maximum(p_first - window + 1, 0)
            inner_start = tl.maximum(p_last - window + 1, 0)
        else:
            at_first = position_at(positions_ptr, stride_position, p_first, position_count)
            at_last = position_at(positions_ptr, stride_position, p_last, position_count)
            start = first_above(at_first - window, positions_ptr, stride_position, 0, end)
            inner_start = first_above(at_last - window, positions_ptr, stride_position, start, end)
    start = start // BLOCK * BLOCK
    inner_start = tl.minimum(tl.cdiv(inner_start, BLOCK), tl.cdiv(end, BLOCK)) * BLOCK
    inner_end = tl.maximum(inner_end // BLOCK * BLOCK, inner_start)
    return start, inner_start, inner_end, end


@triton.jit
def query_range(
    j_first,
    j_last,
    offset,
    q_count,
    window,
    positions_ptr,
    stride_position,
    position_count,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(start, inner_start, inner_end, end) of the queries for the keys `j_first` to `j_last`.

    No query outside [start, end) sees any of the keys, and every query of [inner_start, inner_end),
    which may be empty, sees them all. All but `end` are multiples of BLOCK.
    """
    start = 0
    inner_start = 0
    end = q_count
    inner_end = q_count
    if CAUSAL:
        start = tl.maximum(j_first - offset, 0)
        inner_start = tl.maximum(j_last - offset, 0)
    if window is not None:
        if positions_ptr is None:
            end = tl.minimum(q_count, j_last + window - offset)
            inner_end = tl.minimum(q_count, j_first + window - offset)
        else:
            end = _first_without(
                j_last, offset, q_count, window, positions_ptr, stride_position, position_count
            )
            inner_end = _first_without(
                j_first, offset, q_count, window, positions_ptr, stride_position, position_count
            )
    end = tl.maximum(end, 0)
    inner_start = tl.minimum(tl.cdiv(inner_start, BLOCK), tl.cdiv(end, BLOCK)) * BLOCK
    inner_end = tl.maximum(tl.maximum(inner_end, 0) // BLOCK * BLOCK, inner_start)
    return start // BLOCK * BLOCK, inner_start, inner_end, end


@triton.jit
def _first_without(j, offset, q_count, window, positions_ptr, stride_position, position_count):
    """The first query from key `j` on whose window, in positions, does not reach back to it."""
    limit = position_at(positions_ptr, stride_position, j, position_count).to(tl.int64) + window - 1
    p = first_above(limit, positions_ptr, stride_position, tl.maximum(j, 0), position_count)
    return tl.where(p < position_count, tl.minimum(q_count, p - offset), q_count)


@triton.jit
def position_at(positions_ptr, stride_position, p, position_count):
    # Without a key there is no position: p is -1 then.
    p = tl.minimum(tl.maximum(p, 0), position_count - 1)
    return tl.load(positions_ptr + p * stride_position, mask=p >= 0, other=0).to(tl.int32)


@triton.jit
def first_above(limit, positions_ptr, stride_position, low, high):
    """The first index in [low, high) whose position exceeds `limit`, else `high`."""
    low, high = tl.cast(low, tl.int32), tl.cast(high, tl.int32)
    while low < high:
        middle = (low + high) // 2
        above = tl.load(positions_ptr + middle * stride_position).to(tl.int64) > limit
        high = tl.where(above, middle, high)
        low = tl.where(above, low, middle + 1)
    return low


@triton.jit
def visible(p, j, at_p, at_j, k_count, window, CAUSAL: tl.constexpr):
    """Whether queries at key indices `p` see the keys `j`; `at_*` are their positions or None."""
    seen = j < k_count
    if CAUSAL:
        seen &= in_reach(p, j, at_p, at_j, window)
    return seen


@triton.jit
def in_reach(p, j, at_p, at_j, window):
    """Whether causality and a window let queries at key indices `p` see the keys `j`."""
    seen = j <= p
    if window is not None:
        if at_p is None:
            seen &= p - j < window
        else:
            seen &= at_p - at_j < window
    return seen
