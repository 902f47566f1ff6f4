"""The attention backend `"lrk"` of transformers.

transformers asks a backend for two functions: one that turns masks into whatever the backend wants,
once per forward pass, and one that attends, in every layer. What lrk wants are document boundaries.
They come from padding masks and caches here, and from `cu_seq_lens_q` and `cu_seq_lens_k` where the
caller packs documents; never from positions, in which transformers' own backends see a new document
at every skip.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from lrk.kernels.attention import attention

BACKEND = "lrk"


def lrk_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    attention_temperature: float = 1.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention function of the backend; the signature is transformers'.

    Args:
        query: (B, Hq, Sq, D); key, value: (B, Hk, Sk, D).
        attention_mask: what `document_boundaries` returned for this forward pass, or None.
        cu_seq_lens_q: (N + 1,) boundaries of packed documents over the flattened B * Sq tokens.
        attention_temperature: positive; the scores are divided by it before the softmax. Above 1 a
            query spreads its attention, as it does among more keys: see docs/proof.md.

    Returns:
        (B, Sq, Hq, D) output and None: the weights are never formed.

    Raises:
        ValueError: for dropout, for a mask that the backend did not make, for padding and packed
            documents at once, and for a temperature that is not positive.
    """
    if dropout:
        raise ValueError(
            f"attention_dropout is {dropout}; the lrk attention has none: set it to 0 in the config"
        )
    if attention_mask is not None:
        if not is_document_boundaries(attention_mask):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)} and dtype "
                f"{attention_mask.dtype}; the lrk attention takes a (batch, length) padding mask, "
                "and cu_seq_lens_q for packed documents"
            )
        if cu_seq_lens_q is not None:
            raise ValueError(
                "attention_mask has padding and cu_seq_lens_q packs documents; give one of them: "
                "padding is a document too"
            )
        cu_seq_lens_q, cu_seq_lens_k = attention_mask[0, 0].unbind()
    if attention_temperature <= 0:
        raise ValueError(f"attention_temperature is {attention_temperature}; it must be positive")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    causal = module.is_causal if is_causal is None else is_causal
    # A window counts positions, so that a model trained on skipped positions sees what it will see
    # at full length. A cache holds keys without their positions, but those do not skip.
    whole = position_ids is not None and position_ids.shape[-1] == key.shape[2]
    output = attention(
        query,
        key,
        value,
        causal=causal,
        cu_seqlens=cu_seq_lens_q,
        cu_seqlens_k=cu_seq_lens_k,
        window=sliding_window,
        window_position_ids=position_ids if whole and sliding_window is not None else None,
        scale=scaling / attention_temperature,
        softcap=softcap,
    )
    return cast(Tensor, output).transpose(1, 2), None


def document_boundaries(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | None = None,
    **kwargs,
) -> Tensor | None:
    """Mask function of the backend; the signature is transformers'.

    A row of the batch is one document, with padding around it and, in a static cache, unused keys
    behind it. None if there is only the document: causality is aligned to its end.

    Returns:
        (1, 1, 2, 5 B + 1) int32: boundaries over the flattened queries and over the flattened keys.
        transformers passes a four-dimensional tensor through unchanged wherever it takes a mask.

    Raises:
        ValueError: for padding inside a row, and for a custom mask function.
    """
    if use_vmap:
        raise ValueError("custom mask functions are not supported by the lrk attention")
    end = q_offset + q_length
    if attention_mask is None:
        if isinstance(end, int) and end == kv_offset + kv_length:
            return None
        first = torch.zeros(batch_size, dtype=torch.int64, device=device)
        last = end * torch.ones_like(first)
    else:
        whole = not torch.compiler.is_compiling() and attention_mask.all()
        if whole and end == kv_offset + kv_length:
            return None
        first, count = _real_span(attention_mask)
        last = torch.minimum(first + count, torch.as_tensor(end, device=device))
    return torch.stack(
        [
            _boundaries(first, last, q_offset, q_length, padding_document=0),
            _boundaries(first, last, kv_offset, kv_length, padding_document=1),
        ]
    ).to(torch.int32)[None, None]


def is_document_boundaries(attention_mask: Tensor) -> bool:
    """Whether `document_boundaries` made this mask."""
    return attention_mask.ndim == 4 and attention_mask.dtype == torch.int32


def real_tokens(attention_mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, S) bool, the queries that are not padding.

    Args:
        attention_mask: (B, at least S) padding mask, or what `document_boundaries` made of it. Any
            other mask says nothing of padding.
        shape: (B, S).
    """
    if attention_mask.ndim == 2:
        return attention_mask[:, -shape[1] :].bool()
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


@torch.library.custom_op("lrk::real_span", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _real_span(attention_mask: Tensor) -> Tensor:
    """(2, B) int64: where the ones of each row of a (B, S) mask start, and how many there are.

    An operation, so that padding inside a row is refused in a compiled model too.
    """
    starts = attention_mask.int().diff(dim=1).eq(1).sum(1) + attention_mask[:, 0].int()
    if (starts > 1).any():
        row = int((starts > 1).int().argmax())
        raise ValueError(
            f"attention_mask has zeros between the ones of row {row}; the lrk attention takes "
            "padding on the left or on the right, and cu_seq_lens_q for packed documents"
        )
    return torch.stack([attention_mask.int().argmax(1), attention_mask.sum(1)])


@_real_span.register_fake
def _(attention_mask: Tensor) -> Tensor:
    return attention_mask.new_empty(2, attention_mask.shape[0], dtype=torch.int64)


AttentionInterface.register(BACKEND, lrk_attention)
AttentionMaskInterface.register(BACKEND, document_boundaries)
