"""Attention on a CPU: PyTorch's flash attention on pieces that need no S x S mask.

Every document is cut into pieces: full rectangles and causal squares, which PyTorch's kernel takes
as they are, and for windows and softcaps strips of a few queries with a mask each. Pieces of the
same queries merge by their lse, so memory grows with S, not with its square. One causal document
is one piece: the kernel behind `scaled_dot_product_attention(is_causal=True)` and its backward.

A piece's backward is given the *merged* output and lse: its weights `exp(s - lse)` and
`delta = rowsum(dO * O) - dlse` are then those of the whole softmax, and gradients add up.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask import Mask
from .merge import merge_attention

_STRIP_SCORES = 2**22
"""Scores of one strip and head: 16 MiB in float32."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Document(NamedTuple):
    """A slice of the queries and a slice of the keys of some rows, and query 0's key index."""

    rows: slice
    queries: slice
    keys: slice
    offset: int


class _Piece(NamedTuple):
    """A rectangle of scores: all visible, a causal triangle, or what `visible` says."""

    rows: slice
    queries: slice
    keys: slice
    causal: bool = False
    visible: Tensor | None = None
    """(queries, keys) bool."""
    merges: bool = False
    """Whether an earlier piece holds the same queries."""

    def of_queries(self, x: Tensor) -> Tensor:
        return x[self.rows, :, self.queries]

    def of_keys(self, x: Tensor) -> Tensor:
        return x[self.rows, :, self.keys]

    def covers(self, q: Tensor, k: Tensor) -> bool:
        lengths = (q.shape[0], q.shape[2], k.shape[2])
        return (self.rows, self.queries, self.keys) == tuple(slice(0, n) for n in lengths)


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Output (B, Hq, Sq, D) and lse (B, Hq, Sq): float32, or float64 as the inputs."""
    if mask.window_position_ids is not None:
        _check_positions(mask.window_position_ids, mask, k)
    q, k, v = map(_unit_stride, (q, k, v))
    pieces = list(_pieces(q, k, mask, strips=softcap is not None))
    if len(pieces) == 1 and pieces[0].covers(q, k):
        out, lse = _forward_piece(pieces[0], q, k, v, scale, softcap)
        return _heads_inside(out, q.dtype), lse.contiguous()
    out = _zeros_like(q, q.dtype)
    lse = q.new_full(q.shape[:-1], float("-inf"), dtype=_accumulator(q.dtype))
    for piece in pieces:
        o_here, lse_here = piece.of_queries(out), piece.of_queries(lse)
        o, o_lse = _forward_piece(
            piece, piece.of_queries(q), piece.of_keys(k), piece.of_keys(v), scale, softcap
        )
        if piece.merges:
            o, o_lse = merge_attention(o, o_lse, o_here, lse_here)
        o_here.copy_(o)
        lse_here.copy_(o_lse)
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their dtypes."""
    grad_out, q, k, v, out = map(_unit_stride, (grad_out, q, k, v, out))
    pieces = list(_pieces(q, k, mask, strips=softcap is not None))
    if len(pieces) == 1 and pieces[0].covers(q, k):
        whole = _backward_piece(pieces[0], grad_out, grad_lse, q, k, v, out, lse, scale, softcap)
        grad_q, grad_k, grad_v = (_heads_inside(x, x.dtype) for x in whole)
        return grad_q, grad_k, grad_v
    grads = [_zeros_like(x, _accumulator(x.dtype)) for x in (q, k, v)]
    for piece in pieces:
        of_piece = _backward_piece(
            piece,
            piece.of_queries(grad_out),
            None if grad_lse is None else piece.of_queries(grad_lse),
            piece.of_queries(q),
            piece.of_keys(k),
            piece.of_keys(v),
            piece.of_queries(out),
            piece.of_queries(lse),
            scale,
            softcap,
        )
        places = (piece.of_queries(grads[0]), piece.of_keys(grads[1]), piece.of_keys(grads[2]))
        for place, grad in zip(places, of_piece, strict=True):
            place += grad
    grad_q, grad_k, grad_v = (_heads_inside(x, q.dtype) for x in grads)
    return grad_q, grad_k, grad_v


# Cutting documents into pieces.


def _pieces(q: Tensor, k: Tensor, mask: Mask, strips: bool) -> Iterator[_Piece]:
    for document in _documents(q, k, mask):
        if document.keys.start == document.keys.stop:
            continue
        if strips or mask.window is not None:
            yield from _strips(document, mask)
        elif mask.causal:
            yield from _causal_pieces(document)
        else:
            yield _Piece(document.rows, document.queries, document.keys)


def _documents(q: Tensor, k: Tensor, mask: Mask) -> Iterator[_Document]:
    batch, q_length, k_length = q.shape[0], q.shape[2], k.shape[2]
    if q_length == 0 or batch == 0:
        return
    if mask.cu_seqlens is not None:
        assert mask.cu_seqlens_k is not None
        yield from _packed_documents(mask.cu_seqlens, mask.cu_seqlens_k, q, k)
        return
    lengths = [k_length] * batch if mask.kv_lengths is None else mask.kv_lengths.tolist()
    offsets = [mask.q_offset] * batch if mask.q_offsets is None else mask.q_offsets.tolist()
    for offset in offsets:
        if abs(offset) > 2**30:
            raise ValueError(f"q_offset has {offset}: must be from -2^30 to 2^30")
    for length in lengths:
        if not 0 <= length <= k_length:
            raise ValueError(
                f"kv_lengths has {length}: must be from 0 to the {k_length} keys of a row"
            )
    positions = mask.window_position_ids
    alike = len(set(zip(lengths, offsets, strict=True))) == 1
    if alike and (positions is None or positions.shape[0] == 1):
        yield _Document(slice(0, batch), slice(0, q_length), slice(0, lengths[0]), offsets[0])
        return
    for row, (length, offset) in enumerate(zip(lengths, offsets, strict=True)):
        yield _Document(slice(row, row + 1), slice(0, q_length), slice(0, length), offset)


def _packed_documents(cu_q: Tensor, cu_k: Tensor, q: Tensor, k: Tensor) -> Iterator[_Document]:
    q_ends = _checked_ends("cu_seqlens", cu_q, q.shape[0], q.shape[2])
    k_ends = _checked_ends("cu_seqlens_k", cu_k, k.shape[0], k.shape[2])
    spans = zip(itertools.pairwise(q_ends), itertools.pairwise(k_ends), strict=True)
    for (q_start, q_end), (k_start, k_end) in spans:
        if q_start == q_end or k_start == k_end:
            continue
        row, key_row = q_start // q.shape[2], k_start // k.shape[2]
        if row != key_row:
            raise ValueError(
                f"cu_seqlens and cu_seqlens_k put one document's queries in row {row} and its "
                f"keys in row {key_row}: must be the same row"
            )
        yield _Document(
            slice(row, row + 1),
            slice(q_start - row * q.shape[2], q_end - row * q.shape[2]),
            slice(k_start - row * k.shape[2], k_end - row * k.shape[2]),
            (k_end - k_start) - (q_end - q_start),
        )


def _check_positions(positions: Tensor, mask: Mask, k: Tensor) -> None:
    if positions.numel() == 0:
        return
    low, high = positions.min().item(), positions.max().item()
    if low < 0 or high >= 2**31:
        raise ValueError(
            f"window_position_ids run from {low} to {high}: must be from 0 to 2^31 - 1"
        )
    falls = positions.diff(dim=1) < 0
    if mask.cu_seqlens_k is not None:  # a new document may begin anywhere
        falls = falls.expand(k.shape[0], -1).clone()
        starts = mask.cu_seqlens_k.long().clamp(0, k.shape[0] * k.shape[2])
        row, first = starts // k.shape[2], starts % k.shape[2]
        falls[row[first > 0], first[first > 0] - 1] = False
    if falls.any():
        row, key = falls.nonzero()[0].tolist()
        raise ValueError(
            f"window_position_ids fall after key {key} of row {row}: must never fall in a document"
        )


def _checked_ends(name: str, cu_seqlens: Tensor, batch: int, length: int) -> list[int]:
    ends = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != batch * length:
        raise ValueError(
            f"{name} runs from {ends[0]} to {ends[-1]}: must rise from 0 to batch * length = "
            f"{batch * length}"
        )
    for start, end in itertools.pairwise(ends):
        if end < start:
            raise ValueError(f"{name} falls from {start} to {end}: must never fall")
        if start < end and start // length != (end - 1) // length:
            raise ValueError(
                f"{name} has a document from {start} to {end} that crosses the end of a row of "
                f"{length} tokens: a document must lie in one row"
            )
    return ends


def _causal_pieces(document: _Document) -> Iterator[_Piece]:
    """A square on the diagonal, the keys before it, and the queries after all keys."""
    rows, queries, keys, offset = document
    q_length, k_length = queries.stop - queries.start, keys.stop - keys.start
    first = min(max(-offset, 0), q_length)  # earlier queries see nothing
    last = min(max(k_length - offset, first), q_length)  # later queries see everything
    if last - first == 1:  # a single query, as in decoding, needs no square
        seen = slice(keys.start, keys.start + offset + first + 1)
        yield _Piece(rows, slice(queries.start + first, queries.start + last), seen)
    elif first < last:
        square = slice(queries.start + first, queries.start + last)
        diagonal = keys.start + offset + first
        yield _Piece(rows, square, slice(diagonal, diagonal + last - first), causal=True)
        if offset > 0:
            yield _Piece(rows, square, slice(keys.start, diagonal), merges=True)
    if last < q_length:
        yield _Piece(rows, slice(queries.start + last, queries.stop), keys)


def _strips(document: _Document, mask: Mask) -> Iterator[_Piece]:
    """Strips of queries with all the keys that any of them sees, and a mask."""
    rows, queries, keys, offset = document
    q_length, k_length = queries.stop - queries.start, keys.stop - keys.start
    index = torch.arange(offset, offset + q_length)
    first, last = torch.zeros_like(index), torch.full_like(index, k_length - 1)
    if mask.causal:
        last = index.clamp(max=k_length - 1)
    if mask.window is not None and mask.window_position_ids is not None:
        row = 0 if mask.window_position_ids.shape[0] == 1 else rows.start
        positions = mask.window_position_ids[row, keys.start :]
        at_query = positions[index.clamp(0, positions.shape[0] - 1)]
        seen = positions[:k_length].contiguous()
        first = torch.searchsorted(seen, at_query - mask.window, right=True)
    elif mask.window is not None:
        first = (index - mask.window + 1).clamp(min=0)

    widest = int((last - first).max()) + 1
    height = min(max(_STRIP_SCORES // max(widest, 1), 16), 512)
    for start in range(0, q_length, height):
        strip = slice(start, min(start + height, q_length))
        low, high = int(first[strip].min()), int(last[strip].max()) + 1
        if low >= high:
            continue
        column = torch.arange(low, high)
        visible = (column >= first[strip, None]) & (column <= last[strip, None])
        yield _Piece(
            rows,
            slice(queries.start + strip.start, queries.start + strip.stop),
            slice(keys.start + low, keys.start + high),
            visible=visible,
        )


# Computing a piece.


def _forward_piece(
    piece: _Piece, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    if softcap is None:
        out, lse = _flash(q, k, v, 0.0, piece.causal, attn_mask=_bias(piece, q.dtype), scale=scale)
    else:
        scores = _capped_scores(piece, q, k, scale, softcap)
        lse = scores.logsumexp(-1)
        weights = torch.exp(scores - _finite(lse)[..., None])
        out = _ungroup(weights @ v.to(scores.dtype)[:, :, None]).to(q.dtype)
        lse = _ungroup(lse)
    if piece.visible is not None:
        lse = lse.masked_fill(~piece.visible.any(-1), float("-inf"))
    return out, lse


def _backward_piece(
    piece: _Piece,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    lse = _finite(lse)
    if softcap is not None:
        return _backward_capped(piece, grad_out, grad_lse, q, k, v, out, lse, scale, softcap)
    head_dim = q.shape[-1]
    if grad_lse is not None:
        # PyTorch's kernel takes no dlse, but two more columns bring it in: ones in dO against
        # -dlse in O lower its rowsum(dO * O) by dlse, and zeros in q, k and v change nothing else.
        # The second column holds what the dtype rounds off the first.
        high = grad_lse.to(q.dtype)
        low = (grad_lse - high).to(q.dtype)
        q, k, v = (F.pad(x, (0, 2)) for x in (q, k, v))
        grad_out = F.pad(grad_out, (0, 2), value=1.0)
        out = torch.cat([out, -high[..., None], -low[..., None]], -1)
    grads = _flash_backward(
        grad_out,
        q,
        k,
        v,
        out,
        lse,
        0.0,
        piece.causal,
        attn_mask=_bias(piece, q.dtype),
        scale=scale,
    )
    grad_q, grad_k, grad_v = (grad[..., :head_dim] for grad in grads)
    return grad_q, grad_k, grad_v


def _backward_capped(
    piece: _Piece,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """With `s = c tanh(x / c)`, `ds/dx = 1 - (s / c)^2`; otherwise as in `backward.py`."""
    heads = k.shape[1]
    scores = _capped_scores(piece, q, k, scale, softcap)
    dtype = scores.dtype
    q, out, grad_out = (_group(x, heads).to(dtype) for x in (q, out, grad_out))
    k, v = (x.to(dtype)[:, :, None] for x in (k, v))
    delta = (grad_out * out).sum(-1)
    if grad_lse is not None:
        delta = delta - _group(grad_lse, heads)
    weights = torch.exp(scores - _group(lse, heads)[..., None])
    grad_v = (weights.mT @ grad_out).sum(2)
    grad_scores = weights * (grad_out @ v.mT - delta[..., None])
    slope = 1 - (scores.masked_fill(torch.isneginf(scores), 0.0) / softcap) ** 2
    grad_scores = grad_scores * slope * scale
    grad_q, grad_k = grad_scores @ k, (grad_scores.mT @ q).sum(2)
    return _ungroup(grad_q), grad_k, grad_v


def _capped_scores(piece: _Piece, q: Tensor, k: Tensor, scale: float, softcap: float) -> Tensor:
    """(B, Hk, group, queries, keys) in the accumulator's dtype, `-inf` where not visible."""
    dtype = _accumulator(q.dtype)
    products = _group(q, k.shape[1]).to(dtype) @ k.to(dtype)[:, :, None].mT
    scores = softcap * torch.tanh(products * (scale / softcap))
    return scores if piece.visible is None else scores.masked_fill(~piece.visible, float("-inf"))


def _bias(piece: _Piece, dtype: torch.dtype) -> Tensor | None:
    if piece.visible is None:
        return None
    hidden = ~piece.visible
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _group(x: Tensor, kv_heads: int) -> Tensor:
    """(B, Hq, ...) to (B, Hk, Hq / Hk, ...)."""
    return x.unflatten(1, (kv_heads, -1))


def _ungroup(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


def _finite(lse: Tensor) -> Tensor:
    """Any number in place of the `-inf` of rows without keys, whose scores are all `-inf`."""
    return lse.masked_fill(torch.isneginf(lse), 0.0)


def _unit_stride(x: Tensor) -> Tensor:
    """As PyTorch's kernel needs it: rows of the head dimension that are dense and do not overlap.

    It reads them as dense, whatever the stride says, and where those of q overlap, as in a sliding
    view, it leaves most of its output unwritten.
    """
    *outer, inner = zip(x.stride(), x.shape, strict=True)
    apart = all(stride == 0 or stride >= x.shape[-1] for stride, size in outer if size > 1)
    return x if apart and inner[0] == 1 else x.contiguous()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _heads_inside(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, S, D) in the layout that the operation promises: copies only if it differs."""
    return x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)


def _zeros_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, S, D) zeros, with the heads of a token side by side in memory as in transformers."""
    batch, heads, length, head_dim = x.shape
    return x.new_zeros(batch, length, heads, head_dim, dtype=dtype).transpose(1, 2)
