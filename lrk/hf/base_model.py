"""The checks that a patched model makes of positions, once per forward pass.

transformers' own attention backends take a position that is not its neighbour plus one for the
start of a packed document, and hide everything before it. The loss of such a run looks normal, and
nothing long-range is trained. So skips are refused there, and lrk's backends in turn refuse
positions that start again: their documents are explicit.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from lrk.hf import flash_attention
from lrk.hf.attention import (
    BACKEND,
    POSITIONS_RESTART,
    a_document_a_row,
    check_padding,
    real_tokens,
)
from lrk.hf.backends import OURS, name_of
from lrk.hf.cache_name import either_cache_name, named_cache


class LrkBaseModel:
    """Mixed in before a stock base model, which has this attribute."""

    config: PretrainedConfig

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock forward, with `checked_positions`.

        Raises:
            ValueError: also for an `attention_temperature` that the backend would ignore.
        """
        backend = self.config._attn_implementation
        if "attention_temperature" in kwargs and backend not in OURS:
            raise ValueError(
                f"attention_temperature is {kwargs['attention_temperature']}, which the attention "
                f"implementation {backend!r} ignores: use lrk.patch(model, attention=True)"
            )
        tokens = inputs_embeds if input_ids is None else input_ids
        if position_ids is not None and tokens is not None:
            # `generate` prepares one mask for each type of layer; padding is the same in all.
            mask = attention_mask
            if isinstance(mask, dict):
                mask = next(iter(mask.values()))
            position_ids = checked_positions(
                position_ids,
                (tokens.shape[0], tokens.shape[1]),
                backend,
                mask,
                kwargs.get("cu_seq_lens_q"),
                getattr(self.config, "sliding_window", None),
            )
        if backend in OURS:
            kwargs["positions_are_checked"] = True
        if backend in flash_attention.BACKENDS.values() and tokens is not None:
            kwargs |= _longest_documents(tokens.shape[0], **kwargs)
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **named_cache(cache),
            **kwargs,
        )


def _longest_documents(
    batch: int,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **kwargs: Any,
) -> dict[str, int]:
    """Tokens of the longest document, as FlashAttention asks for, where nobody says it.

    Once a forward pass and not in every layer, since it is a synchronisation with the device. A
    graph has none: there the length of a row is bound enough.
    """
    if (
        cu_seq_lens_q is None
        or a_document_a_row(cu_seq_lens_q, batch)
        or torch.compiler.is_compiling()
    ):
        return {}
    ends_k = cu_seq_lens_q if cu_seq_lens_k is None else cu_seq_lens_k
    if max_length_q is None or max_length_k is None:
        longest = torch.stack([cu_seq_lens_q.diff().max(), ends_k.diff().max()]).tolist()
        max_length_q, max_length_k = longest
    return {"max_length_q": int(max_length_q), "max_length_k": int(max_length_k)}


def checked_positions(
    position_ids: Tensor,
    shape: tuple[int, int],
    backend: str,
    attention_mask: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """The positions, or `ValueError` if the attention backend would misunderstand them.

    Args:
        position_ids: (B or 1, S) integers.
        shape: (B, S) of the tokens.
        backend: `config._attn_implementation`.
        attention_mask: (B, at least S) padding mask, of which the last S columns are the tokens; or
            what the backend made of it; or None.
        cu_seq_lens: (N + 1,) boundaries of packed documents over the flattened tokens, or None.
        window: of the model, which lrk's own attention counts in positions and others' in tokens.

    Costs one synchronisation with the device, except where one token a row is generated. A
    compiled model checks in every forward pass too: the check is an operation of its graph.
    """
    batch, length = shape
    if position_ids.ndim != 2 or position_ids.shape[0] not in (1, batch):
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}; it must be ({batch}, {length}) "
            f"or (1, {length})"
        )
    if position_ids.shape[1] != length:
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)} for {length} tokens a row"
        )
    if position_ids.is_floating_point():
        raise ValueError(f"position_ids has dtype {position_ids.dtype}; it must be an integer type")
    if attention_mask is not None and attention_mask.ndim == 2:
        check_padding(attention_mask, batch, length)
    if length <= 1:
        return position_ids
    return _checked_positions(position_ids, batch, backend, attention_mask, cu_seq_lens, window)


@torch.library.custom_op(
    "lrk::checked_positions", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _checked_positions(
    position_ids: Tensor,
    batch: int,
    backend: str,
    attention_mask: Tensor | None,
    cu_seq_lens: Tensor | None,
    window: int | None,
) -> Tensor:
    """A copy, which whatever is traced must use: so the check cannot be dropped from a graph."""
    shape = (batch, position_ids.shape[1])
    steps = position_ids.diff(dim=1).expand(batch, -1)
    inside = _inside_documents(shape, attention_mask, cu_seq_lens, position_ids.device)
    negative = (position_ids < 0).any()
    skips = ((steps > 1) & inside).any()
    restarts = ((steps < 1) & inside).any()
    across_rows = window_skips = torch.zeros_like(skips)
    if backend in OURS and cu_seq_lens is not None:
        rows = shape[1] * torch.arange(batch, device=cu_seq_lens.device)
        across_rows = ~torch.isin(rows, cu_seq_lens).all()
    if backend in OURS and backend != BACKEND and window is not None:
        window_skips = _windows_differ(position_ids.expand(batch, -1), inside, window)
    negative, skips, restarts, across_rows, window_skips = torch.stack(
        [negative, skips, restarts, across_rows.to(skips.device), window_skips]
    ).tolist()
    if negative:
        raise ValueError(f"position_ids has a negative entry, {int(position_ids.min())}")
    if backend in OURS and restarts:
        raise ValueError(POSITIONS_RESTART)
    if across_rows:
        raise ValueError(
            f"cu_seq_lens_q has a document across two rows of {shape[1]} tokens; a row ends where "
            "a document does"
        )
    if window_skips:
        raise ValueError(
            f"position_ids skip by more than the model's sliding window of {window} leaves room "
            f"for, and attention {name_of(backend)!r} counts it in tokens: use attention='lrk', "
            "which counts positions"
        )
    has_explicit_documents = backend.startswith("flash_attention") and cu_seq_lens is not None
    if backend not in OURS and skips and not has_explicit_documents:
        raise ValueError(
            f"position_ids skip, and the attention implementation {backend!r} takes every skip for "
            "the start of another document, so that nothing long-range is learnt: use "
            'lrk.patch(model, attention=True) or model.set_attn_implementation("lrk")'
        )
    return position_ids.clone()


@_checked_positions.register_fake
def _(position_ids: Tensor, *_: object) -> Tensor:
    return torch.empty_like(position_ids)


def _windows_differ(position_ids: Tensor, inside: Tensor, window: int) -> Tensor:
    """() bool: whether a window of positions hides a token that one of tokens shows.

    Positions rise by at least 1 a token, so a query's farthest token in a window of tokens, or its
    document's first, is the first to be hidden.

    Args:
        position_ids: (B, S). inside: (B, S - 1), of `_inside_documents`.
    """
    index = torch.arange(position_ids.shape[1], device=position_ids.device)
    starts = torch.nn.functional.pad(~inside, (1, 0), value=True)
    first = torch.where(starts, index, 0).cummax(dim=1).values
    farthest = torch.maximum(first, index - (window - 1))
    return (position_ids - position_ids.gather(1, farthest) >= window).any()


def _inside_documents(
    shape: tuple[int, int],
    attention_mask: Tensor | None,
    cu_seq_lens: Tensor | None,
    device: torch.device,
) -> Tensor:
    """(B, S - 1) bool: whether a token and the next are of one document, and neither is padding."""
    batch, length = shape
    inside = torch.ones(batch, length - 1, dtype=torch.bool, device=device)
    if attention_mask is not None:
        real = real_tokens(attention_mask, shape)
        inside = inside & real[:, 1:] & real[:, :-1]
    if cu_seq_lens is not None:
        starts = torch.zeros(batch * length + 1, dtype=torch.bool, device=device)
        starts = starts.index_fill(0, cu_seq_lens.long().clamp(0, batch * length), True)
        inside = inside & ~starts[:-1].view(batch, length)[:, 1:]
    return inside
