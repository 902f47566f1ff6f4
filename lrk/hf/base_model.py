"""The checks that a patched model makes of positions and documents, once per forward pass.

transformers' own attention backends take a position that is not its neighbour plus one for the
start of a packed document, and hide everything before it. The loss of such a run looks normal, and
nothing long-range is trained. So skips are refused there, and lrk's backends in turn refuse
positions that start again: their documents are explicit. Boundaries that are no documents of the
batch would be read wrongly in silence, so they are looked at too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from lrk.hf import flash_attention
from lrk.hf.architectures import sliding_window_of
from lrk.hf.attention import BACKEND, POSITIONS_RESTART
from lrk.hf.backends import OURS, name_of
from lrk.hf.cache_name import either_cache_name, named_cache
from lrk.hf.document_boundaries import check_padding, real_tokens
from lrk.hf.sequence_split import SequenceSplit, note_whole_positions
from lrk.hf.signatures import check_signature


class LrkBaseModel:
    """Mixed in before a stock base model, which has this attribute."""

    config: PretrainedConfig

    @classmethod
    def over(cls, stock: type[Any]) -> dict[str, Any]:
        """See `lrk.hf.mixed.mixed`."""
        check_signature(stock, cls)
        return {}

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
            ValueError: also for an `attention_temperature` that the backend would ignore, for a
                `sequence_split` beside what it cannot split, and for a `max_length_q` or
                `max_length_k` below the longest document where FlashAttention would read it.
        """
        backend = self.config._attn_implementation
        if "attention_temperature" in kwargs and backend not in OURS:
            raise ValueError(
                f"attention_temperature is {kwargs['attention_temperature']}, which the attention "
                f"implementation {backend!r} ignores: use lrk.patch(model, attention=True)"
            )
        tokens = inputs_embeds if input_ids is None else input_ids
        split: SequenceSplit | None = kwargs.get("sequence_split")
        documents = Documents(kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k"))
        packs = any(ends is not None for ends in documents)
        if split is not None:
            beside = {
                "attention_mask": attention_mask,
                **named_cache(cache),
                "use_cache": use_cache,
            }
            _check_split(
                split,
                {"input_ids": tokens, "position_ids": position_ids},
                backend,
                beside | documents._asdict(),
                sliding_window_of(self.config),
            )
            use_cache = False
            note_whole_positions(cast(Tensor, position_ids), split)
        elif tokens is not None and position_ids is None and packs:
            position_ids = _stock_positions(tokens, cache)
        if split is None and tokens is not None and position_ids is not None:
            # `generate` prepares one mask for each type of layer; padding is the same in all.
            mask = attention_mask
            if isinstance(mask, dict):
                mask = next(iter(mask.values()))
            position_ids, longest = checked_positions(
                position_ids,
                (tokens.shape[0], tokens.shape[1]),
                backend,
                mask,
                documents,
                sliding_window_of(self.config),
                tokens.shape[1] if cache is None else None,
            )
            if backend in flash_attention.BACKENDS.values():
                kwargs |= _longest_documents(longest, kwargs)
        if backend in OURS:
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


def _check_split(
    split: SequenceSplit,
    parts: Mapping[str, Tensor | None],
    backend: str,
    beside: Mapping[str, Any],
    window: int | None,
) -> None:
    """`checked_positions` of the whole rows, and `ValueError` for what cannot be split.

    Args:
        parts: (B, S / N) of this process each.
        beside: other arguments of the forward pass, which would be of this process's tokens alone.
        window: as for `checked_positions`.
    """
    if backend != BACKEND:
        raise ValueError(
            f"sequence_split is given with the attention implementation {backend!r}, which would "
            "see the tokens of one process alone: use lrk.patch(model, attention=True)"
        )
    for name, value in beside.items():
        if value is not None and value is not False:
            raise ValueError(
                f"{name} is given with sequence_split, which has the documents itself and knows "
                "neither padding nor a cache: leave it out"
            )
    batch = split.position_ids.shape[0]
    shape = (batch, split.length // split.size)
    for name, part in parts.items():
        if part is None or part.shape[:2] != shape:
            found = "missing" if part is None else f"of shape {tuple(part.shape)}"
            raise ValueError(
                f"{name} is {found}; with sequence_split it must be {shape}, as lrk.split_batch "
                "returns it"
            )
    documents = Documents(split.cu_seq_lens, None)
    whole = (batch, split.length)
    checked_positions(split.position_ids, whole, backend, None, documents, window, split.length)


class Documents(NamedTuple):
    """Packed documents as the caller tells them."""

    cu_seq_lens_q: Tensor | None
    """(N + 1,) integers: 0, then the end of each document among the flattened queries."""
    cu_seq_lens_k: Tensor | None
    """Likewise among the flattened keys, of which a cache may hold more; None: as the queries'."""


def _stock_positions(tokens: Tensor, cache: Cache | None) -> Tensor:
    """(1, S) int64: what the stock model takes where it is given none.

    Args:
        tokens: (B, S) ids, or (B, S, H) embeddings.
    """
    seen = 0 if cache is None else cache.get_seq_length()
    return torch.arange(tokens.shape[1], device=tokens.device)[None] + seen


def _longest_documents(longest: Tensor | None, given: Mapping[str, Any]) -> dict[str, int | None]:
    """Tokens of the longest document, as FlashAttention asks for, which reads no further.

    In a graph nobody knows it: what was given is dropped, and the length of a row is bound enough.

    Args:
        longest: of `checked_positions`.
        given: `max_length_q` and `max_length_k` among others.
    """
    names = ("max_length_q", "max_length_k")
    if longest is None:
        return {}
    if torch.compiler.is_compiling():
        return dict.fromkeys(names)
    found = dict(zip(names, longest.tolist(), strict=True))
    for name, length in found.items():
        if given.get(name) is not None and given[name] < length:
            raise ValueError(
                f"{name} is {given[name]}, and the longest document has {length} tokens: leave it "
                "out, or give that many"
            )
    return found


def checked_positions(
    position_ids: Tensor,
    shape: tuple[int, int],
    backend: str,
    attention_mask: Tensor | None,
    documents: Documents,
    window: int | None,
    k_length: int | None,
) -> tuple[Tensor, Tensor | None]:
    """The positions, or `ValueError` if the attention backend would misunderstand them.

    Args:
        position_ids: (B or 1, S) integers.
        shape: (B, S) of the tokens.
        backend: `config._attn_implementation`.
        attention_mask: (B, at least S) padding mask, of which the last S columns are the tokens; or
            what the backend made of it; or None.
        documents: boundaries of packed documents over the flattened tokens.
        window: of the model, which lrk's own attention counts in positions and others' in tokens.
        k_length: keys of a row, if that is known.

    Returns:
        The positions, and with `documents` (2,) int64 on the CPU: tokens of the longest among the
        queries and among the keys.

    Costs one synchronisation with the device, except where one token a row is generated. A
    compiled model checks in every forward pass too: the check is an operation of its graph.
    """
    batch, length = shape
    if position_ids.ndim != 2 or position_ids.shape[0] not in (1, batch):
        allowed = " or ".join(dict.fromkeys((f"({batch}, {length})", f"(1, {length})")))
        adds_row = ": pass position_ids[None]" if position_ids.shape == (length,) else ""
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}; it must be {allowed}{adds_row}"
        )
    if position_ids.shape[1] != length:
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)} for {length} tokens a row"
        )
    if position_ids.is_floating_point():
        raise ValueError(f"position_ids has dtype {position_ids.dtype}; it must be an integer type")
    if attention_mask is not None and attention_mask.ndim == 2:
        check_padding(attention_mask, batch, length)
    if backend in OURS:
        _check_shapes(documents)
    packs = documents.cu_seq_lens_q is not None
    if length <= 1 and not packs:
        return position_ids, None
    checked, longest = _checked_positions(
        position_ids, batch, backend, attention_mask, *documents, window, k_length
    )
    return checked, longest if packs else None


def _check_shapes(documents: Documents) -> None:
    """What is wrong with boundaries before a device is asked."""
    ends, ends_k = documents
    if ends is None:
        if ends_k is not None:
            raise ValueError(
                "cu_seq_lens_k is given without cu_seq_lens_q, which has the documents' queries: "
                "give both"
            )
        return
    if ends.ndim != 1 or len(ends) < 2:
        raise ValueError(
            f"cu_seq_lens_q has shape {tuple(ends.shape)}; it must be (N + 1,) for N documents"
        )
    if ends_k is not None and ends_k.shape != ends.shape:
        raise ValueError(
            f"cu_seq_lens_k has shape {tuple(ends_k.shape)}; it must be that of cu_seq_lens_q, "
            f"{tuple(ends.shape)}"
        )


@torch.library.custom_op(
    "lrk::checked_positions", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _checked_positions(
    position_ids: Tensor,
    batch: int,
    backend: str,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None,
    cu_seq_lens_k: Tensor | None,
    window: int | None,
    k_length: int | None,
) -> tuple[Tensor, Tensor]:
    """A copy, which whatever is traced must use: so the check cannot be dropped from a graph.

    And (2,) int64 on the CPU, as `checked_positions` returns it; zeros without documents.
    """
    shape = (batch, position_ids.shape[1])
    device = position_ids.device
    steps = position_ids.diff(dim=1).expand(batch, -1)
    inside = _inside_documents(shape, attention_mask, cu_seq_lens_q, device)
    negative = (position_ids < 0).any()
    skips = ((steps > 1) & inside).any()
    restarts = ((steps < 1) & inside).any()
    window_skips = torch.zeros_like(skips)
    if backend in OURS and backend != BACKEND and window is not None:
        window_skips = _windows_differ(position_ids.expand(batch, -1), inside, window)
    flags = torch.stack([negative, skips, restarts, window_skips])
    ends_q = _of_ends(cu_seq_lens_q, shape, device)
    ends_k = _of_ends(cu_seq_lens_k, (batch, k_length), device)
    found = torch.cat([flags.long(), ends_q, ends_k]).tolist()
    negative, skips, restarts, window_skips = found[:4]
    of_q, of_k = _OfEnds(*found[4:9]), _OfEnds(*found[9:])
    if negative:
        raise ValueError(f"position_ids has a negative entry, {int(position_ids.min())}")
    if backend in OURS and cu_seq_lens_q is not None:
        _check_ends("cu_seq_lens_q", of_q, shape)
    if backend in OURS and cu_seq_lens_k is not None:
        _check_ends("cu_seq_lens_k", of_k, (batch, k_length))
    if backend in OURS and restarts:
        raise ValueError(POSITIONS_RESTART)
    if window_skips:
        raise ValueError(
            f"position_ids skip by more than the model's sliding window of {window} leaves room "
            f"for, and attention {name_of(backend)!r} counts it in tokens: use attention='lrk', "
            "which counts positions"
        )
    has_explicit_documents = backend.startswith("flash_attention") and cu_seq_lens_q is not None
    if backend not in OURS and skips and not has_explicit_documents:
        raise ValueError(
            f"position_ids skip, and the attention implementation {backend!r} takes every skip for "
            "the start of another document, so that nothing long-range is learnt: use "
            'lrk.patch(model, attention=True) or model.set_attn_implementation("lrk")'
        )
    longest = (of_q.longest, of_q.longest if cu_seq_lens_k is None else of_k.longest)
    return position_ids.clone(), torch.tensor(longest)


@_checked_positions.register_fake
def _(position_ids: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(position_ids), torch.empty(2, dtype=torch.int64)


class _OfEnds(NamedTuple):
    """What the ends of documents come down to; all 0 where there are none."""

    first: int
    last: int
    shortest: int
    longest: int
    across_rows: int


def _of_ends(ends: Tensor | None, shape: tuple[int, int | None], device: torch.device) -> Tensor:
    """(5,) int64: `_OfEnds` of (N + 1,) ends over rows of a shape, on the device."""
    if ends is None or ends.ndim != 1 or len(ends) < 2:
        return torch.zeros(len(_OfEnds._fields), dtype=torch.int64, device=device)
    batch, length = shape
    ends = ends.to(device, torch.int64)
    lengths = ends.diff()
    across_rows = torch.zeros((), dtype=torch.bool, device=device)
    if length is not None:
        across_rows = ~torch.isin(length * torch.arange(batch, device=device), ends).all()
    return torch.stack([ends[0], ends[-1], lengths.min(), lengths.max(), across_rows.long()])


def _check_ends(name: str, found: _OfEnds, shape: tuple[int, int | None]) -> None:
    """Refuse what is no partition of the rows, whose length may not be known."""
    batch, length = shape
    if found.first != 0:
        raise ValueError(f"{name} starts at {found.first}; it must start at 0")
    if found.shortest < 0:
        raise ValueError(
            f"{name} falls by {-found.shortest}; each document ends where it starts or later"
        )
    if length is None:
        return
    if found.last != batch * length:
        raise ValueError(
            f"{name} ends at {found.last}; it must end at {batch * length}, with {batch} rows of "
            f"{length} tokens"
        )
    if found.across_rows:
        raise ValueError(
            f"{name} has a document across two rows of {length} tokens; a row ends where a "
            "document does"
        )


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
