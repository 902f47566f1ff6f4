"""Masks as boundaries of documents: what transformers' padding and caches say to the lrk attention.

A row of a batch is one document, with padding around it and, in a static cache, unused keys behind
it. Where boundaries cannot say it, inside a row, the real tokens are marked (`lrk.hf.unpadding`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function
from transformers.utils import logging

from lrk.hf.mask_functions import check_mask_function, is_bidirectional
from lrk.hf.unpadding import first_query, is_marks, marks, real_keys, real_queries

PADDED_DOCUMENTS = (
    "attention_mask has padding and cu_seq_lens_q packs documents; give one of them: padding is a "
    "document too"
)

_logger = logging.get_logger(__name__)


def document_boundaries(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | None = None,
    unpads: bool = True,
    **kwargs,
) -> Tensor | None:
    """Mask function of the backend; the signature is transformers', but for `unpads`.

    A row of the batch is one document, with padding around it and, in a static cache, unused keys
    behind it. None if there is only the document: causality is aligned to its end.

    Returns:
        (1, 1, 2, 5 B + 1) int32: boundaries over the flattened queries and over the flattened keys.
        transformers passes a four-dimensional tensor through unchanged wherever it takes a mask.
        With `unpads`, where there is padding inside a row, or at its end while no gradients are
        computed, `lrk.hf.unpadding.marks`.

    Raises:
        ValueError: for padding inside a row without `unpads`, in a graph that is compiled, and
            where attention is not causal; for a padding mask of another shape than the tokens; and
            for a mask function that says anything else.
    """
    if use_vmap:
        raise ValueError("custom mask functions are not supported by the lrk attention")
    check_mask_function(mask_function)
    if is_bidirectional(mask_function):
        check_padding(attention_mask, batch_size, kv_length, kv_length)
        return _padded_keys(batch_size, q_length, attention_mask)
    end = q_offset + q_length
    if isinstance(end, int):
        check_padding(attention_mask, batch_size, end, end)
    else:  # Of a static cache only the device knows how much of it is filled.
        check_padding(attention_mask, batch_size, q_length, kv_offset + kv_length)
    if attention_mask is None:
        if isinstance(end, int) and end == kv_offset + kv_length:
            return None
        first = torch.zeros(batch_size, dtype=torch.int64, device=device)
        last = end * torch.ones_like(first)
    else:
        if torch.compiler.is_compiling():
            first, count = _real_span(attention_mask)
        else:
            whole, has_holes, ends_padded = _looked_at(attention_mask, end)
            if whole and end == kv_offset + kv_length:
                return None
            # In training nobody asks for the output behind a text, and documents compute none.
            if unpads and (has_holes or (ends_padded and not torch.is_grad_enabled())):
                if has_holes and q_length > 1:
                    _logger.warning_once(
                        "attention_mask has zeros between the ones of a row: the attention of "
                        "these tokens is 0, so nothing should be predicted from them, and the "
                        "label of the token behind them should be -100"
                    )
                return _marks(attention_mask, q_offset, end, kv_offset, kv_length)
            if has_holes:
                raise _holes(attention_mask)
            first, count = _first_and_count(attention_mask)
        last = (first + count).clamp(max=end)
    return torch.stack(
        [
            _boundaries(first, last, q_offset, q_length, padding_document=0),
            _boundaries(first, last, kv_offset, kv_length, padding_document=1),
        ]
    ).to(torch.int32)[None, None]


def _marks(
    attention_mask: Tensor, q_offset: int | Tensor, end: int | Tensor, kv_offset: int, length: int
) -> Tensor:
    places = kv_offset + torch.arange(length, device=attention_mask.device)
    real = attention_mask[:, kv_offset : kv_offset + length].bool()
    real = torch.nn.functional.pad(real, (0, length - real.shape[1]), value=False)
    return marks(real & (places < end), (places >= q_offset) & (places < end))


def check_padding(
    attention_mask: Tensor | None, batch_size: int, least: int, most: int | None = None
) -> None:
    """Raise `ValueError` if a padding mask is not (batch_size, least to most)."""
    if attention_mask is None:
        return
    rows, length = attention_mask.shape
    if rows != batch_size or length < least or (most is not None and length > most):
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        allowed = str(least) if least == most else allowed
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; it must be ({batch_size}, "
            f"{allowed}): a column for each token, those in the cache included"
        )


def _padded_keys(batch_size: int, q_length: int, attention_mask: Tensor | None) -> Tensor | None:
    """All queries of a row see all its keys that are not padding; they may be of another text."""
    if attention_mask is None or (not torch.compiler.is_compiling() and attention_mask.all()):
        return None
    first, count = _real_span(attention_mask)
    start = torch.zeros(batch_size, dtype=torch.int64, device=attention_mask.device)
    return torch.stack(
        [
            _boundaries(start, start + q_length, 0, q_length, padding_document=0),
            _boundaries(first, first + count, 0, attention_mask.shape[1], padding_document=1),
        ]
    ).to(torch.int32)[None, None]


def is_document_boundaries(attention_mask: Tensor) -> bool:
    """Whether `document_boundaries` made this mask."""
    shape = attention_mask.shape
    return len(shape) == 4 and shape[:3] == (1, 1, 2) and attention_mask.dtype == torch.int32


def real_tokens(attention_mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, S) bool, the queries that are not padding.

    Args:
        attention_mask: (B, at least S) padding mask, or what `document_boundaries` made of it. Any
            other mask says nothing of padding.
        shape: (B, S).
    """
    if attention_mask.ndim == 2:
        return attention_mask[:, -shape[1] :].bool()
    if is_marks(attention_mask):
        return real_queries(attention_mask, shape[1])
    if is_document_boundaries(attention_mask):
        num_queries, num_keys = attention_mask[0, 0].diff(dim=1)
        return (num_keys > 0).repeat_interleave(num_queries).view(shape)
    return torch.ones(shape, dtype=torch.bool, device=attention_mask.device)


def _boundaries(
    first: Tensor, last: Tensor, offset: int | Tensor, length: int, padding_document: int
) -> Tensor:
    """Five documents a row, over tokens `offset .. offset + length` of each row of the batch.

    Padding must not attend: queries of padding are documents without keys, keys of padding are
    documents without queries. So the row before `first` is document 0 of the queries and 1 of the
    keys, `[first, last)` is document 2 of both, and the rest is document 4 and 3.
    """
    start, stop = ((bound - offset).clamp(0, length) for bound in (first, last))
    lengths = torch.zeros(len(first), 5, dtype=torch.int64, device=first.device)
    lengths[:, padding_document] = start
    lengths[:, 2] = stop - start
    lengths[:, 4 - padding_document] = length - stop
    return torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))


def boundaries_of(
    attention_mask: Tensor, cu_seq_lens_q: Tensor | None, q_length: int
) -> tuple[Tensor, Tensor]:
    """(N + 1,) ends of the documents of queries and of keys, which `document_boundaries` found.

    Raises:
        ValueError: for any other mask, for padding inside a row, and for padding beside packed
            documents.
    """
    if cu_seq_lens_q is not None and (
        is_marks(attention_mask) or is_document_boundaries(attention_mask)
    ):
        raise ValueError(PADDED_DOCUMENTS)
    if is_marks(attention_mask):
        real = real_keys(attention_mask)
        first, count = _real_span(real)
        span = (first, first + count)
        return (
            _boundaries(*span, first_query(attention_mask), q_length, padding_document=0),
            _boundaries(*span, 0, real.shape[1], padding_document=1),
        )
    if not is_document_boundaries(attention_mask):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and dtype "
            f"{attention_mask.dtype}; the lrk attention takes a (batch, length) padding mask, "
            "and cu_seq_lens_q for packed documents"
        )
    cu_seqlens, cu_seqlens_k = attention_mask[0, 0].unbind()
    return cu_seqlens, cu_seqlens_k


def _holes(attention_mask: Tensor) -> ValueError:
    row = int((_runs(attention_mask) > 1).int().argmax())
    return ValueError(
        f"attention_mask has zeros between the ones of row {row}, which attention='lrk' alone "
        "takes, where it is causal, not compiled and not of lrk.decode: pad on the left or on the "
        "right"
    )


def _looked_at(attention_mask: Tensor, end: int | Tensor) -> list[bool]:
    """Whether all is real, padding is inside a row, and a row's last query is padding.

    Costs one synchronisation with the device.
    """
    real = attention_mask.bool()
    has_holes = (_runs(attention_mask) > 1).any()
    if isinstance(end, int):
        last = real[:, end - 1]
    else:  # To index by a tensor of one number would read it from the device.
        last = real.index_select(1, end.view(1).clamp(max=real.shape[1]) - 1)[:, 0]
    ends_padded = (real.any(dim=1) & ~last).any()
    return torch.stack([real.all(), has_holes, ends_padded]).tolist()


def _runs(attention_mask: Tensor) -> Tensor:
    """(B,) int64: how many times ones begin in each row."""
    return attention_mask.int().diff(dim=1).eq(1).sum(1) + attention_mask[:, 0].int()


def _first_and_count(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) int64 each: where the ones of each row start, and how many there are."""
    return attention_mask.int().argmax(1), attention_mask.sum(1)


@torch.library.custom_op("lrk::real_span", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _real_span(attention_mask: Tensor) -> Tensor:
    """(2, B) int64: where the ones of each row of a (B, S) mask start, and how many there are.

    An operation, so that padding inside a row is refused in a compiled model too.
    """
    if (_runs(attention_mask) > 1).any():
        raise _holes(attention_mask)
    return torch.stack(_first_and_count(attention_mask))


@_real_span.register_fake
def _(attention_mask: Tensor) -> Tensor:
    return attention_mask.new_empty(2, attention_mask.shape[0], dtype=torch.int64)
