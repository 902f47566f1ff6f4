"""The checks that a patched model makes of positions, once per forward pass.

transformers' own attention backends take a position that is not its neighbour plus one for the
start of a packed document, and hide everything before it. The loss of such a run looks normal, and
nothing long-range is trained. So skips are refused there, and lrk's backend in turn refuses
positions that start again: its documents are explicit.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from lrk.hf.attention import BACKEND, POSITIONS_RESTART, real_tokens
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
        if "attention_temperature" in kwargs and self.config._attn_implementation != BACKEND:
            raise ValueError(
                f"attention_temperature is {kwargs['attention_temperature']}, which the attention "
                f"implementation {self.config._attn_implementation!r} ignores: use "
                "lrk.patch(model, attention=True)"
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
                self.config._attn_implementation,
                mask,
                kwargs.get("cu_seq_lens_q"),
            )
        if self.config._attn_implementation == BACKEND:
            kwargs["positions_are_checked"] = True
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **named_cache(cache),
            **kwargs,
        )


def checked_positions(
    position_ids: Tensor,
    shape: tuple[int, int],
    backend: str,
    attention_mask: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
) -> Tensor:
    """The positions, or `ValueError` if the attention backend would misunderstand them.

    Args:
        position_ids: (B or 1, S) integers.
        shape: (B, S) of the tokens.
        backend: `config._attn_implementation`.
        attention_mask: (B, at least S) padding mask, of which the last S columns are the tokens; or
            what the backend made of it; or None.
        cu_seq_lens: (N + 1,) boundaries of packed documents over the flattened tokens, or None.

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
    if length <= 1:
        return position_ids
    return _checked_positions(position_ids, batch, backend, attention_mask, cu_seq_lens)


@torch.library.custom_op(
    "lrk::checked_positions", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _checked_positions(
    position_ids: Tensor,
    batch: int,
    backend: str,
    attention_mask: Tensor | None,
    cu_seq_lens: Tensor | None,
) -> Tensor:
    """A copy, which whatever is traced must use: so the check cannot be dropped from a graph."""
    shape = (batch, position_ids.shape[1])
    steps = position_ids.diff(dim=1).expand(batch, -1)
    inside = _inside_documents(shape, attention_mask, cu_seq_lens, position_ids.device)
    negative = (position_ids < 0).any()
    skips = ((steps > 1) & inside).any()
    restarts = ((steps < 1) & inside).any()
    negative, skips, restarts = torch.stack([negative, skips, restarts]).tolist()
    if negative:
        raise ValueError(f"position_ids has a negative entry, {int(position_ids.min())}")
    if backend == BACKEND and restarts:
        raise ValueError(POSITIONS_RESTART)
    has_explicit_documents = backend.startswith("flash_attention") and cu_seq_lens is not None
    if backend != BACKEND and skips and not has_explicit_documents:
        raise ValueError(
            f"position_ids skip, and the attention implementation {backend!r} takes every skip for "
            "the start of another document, so that nothing long-range is learnt: use "
            'lrk.patch(model, attention=True) or model.set_attn_implementation("lrk")'
        )
    return position_ids.clone()


@_checked_positions.register_fake
def _(position_ids: Tensor, *_: object) -> Tensor:
    return torch.empty_like(position_ids)


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
