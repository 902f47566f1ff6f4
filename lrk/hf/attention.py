"""The attention backend `"lrk"` of transformers.

transformers asks a backend for two functions: one that turns masks into whatever the backend wants,
once per forward pass, and one that attends, in every layer. What lrk wants are document boundaries.
They come from padding masks and caches here, and from `cu_seq_lens_q` and `cu_seq_lens_k` where the
caller packs documents; never from positions, in which transformers' own backends see a new document
at every skip.

Any model of transformers may ask for this backend, also one that lrk does not patch. So whatever
reaches it is obeyed, or known to say nothing of who sees whom, or refused.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging

from lrk.hf.document_boundaries import PADDED_DOCUMENTS, boundaries_of, document_boundaries
from lrk.hf.sequence_split import SequenceSplit
from lrk.hf.unpadding import Unpadding, is_marks, ordered
from lrk.kernels.attention import attention

BACKEND = "lrk"
POSITIONS_RESTART = (
    "position_ids start again inside a row: pass the boundaries of packed documents as "
    "cu_seq_lens_q and cu_seq_lens_k, they are not guessed from positions "
    "(transformers' DataCollatorWithFlattening gives them with return_flash_attn_kwargs=True)"
)
# What models hand through to every attention, and what says nothing of who sees whom: of the
# forward pass, its outputs and its loss; the longest document, which boundaries say as well; that
# gradients be deterministic, as they are; what tokenizers say of tokens (where a model masks by it,
# that comes as a mask function).
_WITHOUT_EFFECT = frozenset(
    (
        *("use_cache", "return_dict", "output_hidden_states", "output_router_logits"),
        *("labels", "shift_labels", "num_items_in_batch", "ignore_index", "logits_to_keep"),
        *("max_length_q", "max_length_k", "deterministic"),
        *("token_type_ids", "mm_token_type_ids", "special_tokens_mask"),
    )
)
SPLIT_MASK = (
    "attention_mask is given with sequence_split, which knows no padding: pack documents, or fill "
    "rows up behind their last document"
)
_SEEN = "_lrk_seen_at_version"
_logger = logging.get_logger(__name__)


class Asked(NamedTuple):
    """What a model asks of an attention, once all that cannot be answered is refused."""

    causal: bool
    cu_seqlens: Tensor | None
    """(N + 1,) ends of the queries' documents; None where each row is one, aligned at its end."""
    cu_seqlens_k: Tensor | None
    window: int | None
    window_position_ids: Tensor | None
    """(B or 1, Sk) positions that the window counts; None counts keys."""
    scale: float
    softcap: float | None
    sinks: Tensor | None
    """(Hq,) what each head's softmax sums beside the keys (gpt-oss)."""


def lrk_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_split: SequenceSplit | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attention function of the backend; the signature is transformers'.

    Args:
        query: (B, Hq, Sq, D); key, value: (B, Hk, Sk, D).
        sequence_split: where these tokens lie, if they are a part of those of the batch.
        attention_mask, arguments: as in `understood`.

    Returns:
        (B, Sq, Hq, D) output and None: the weights are never formed.

    Raises:
        ValueError: as `understood` does; and with `sequence_split` for a mask, for attention that
            looks both ways, and for a model that is not patched.
    """
    if sequence_split is not None:
        if attention_mask is not None:
            raise ValueError(SPLIT_MASK)
        return _split_attention(module, query, key, value, sequence_split, **arguments)
    if attention_mask is not None and is_marks(attention_mask):
        return _unpadded_attention(module, query, key, value, attention_mask, **arguments)
    asked = understood(BACKEND, module, query, key, attention_mask, **arguments)
    output = _attended(
        asked,
        query,
        key,
        value,
        cu_seqlens=asked.cu_seqlens,
        cu_seqlens_k=asked.cu_seqlens_k,
        window_position_ids=asked.window_position_ids,
    )
    return output.transpose(1, 2), None


def _attended(asked: Asked, query: Tensor, key: Tensor, value: Tensor, **where: Any) -> Tensor:
    """(B, Hq, Sq, D) output.

    Args:
        where: documents and positions of queries and keys, which `asked` has where they are whole.
    """
    output = attention(
        query,
        key,
        value,
        causal=asked.causal,
        window=asked.window,
        scale=asked.scale,
        softcap=asked.softcap,
        return_lse=asked.sinks is not None,
        **where,
    )
    return _with_sinks(output, asked.sinks)


def _with_sinks(output: Tensor | tuple[Tensor, Tensor], sinks: Tensor | None) -> Tensor:
    """(B, Hq, Sq, D) output of a softmax that also sums `exp(sink)` of each head.

    What one sum has more than the other is a factor of the whole row: `exp(lse) / (exp(lse) +
    exp(sink))`. A row without keys has an lse of -inf and stays 0.

    Args:
        output: of `attention`; with sinks beside its (B, Hq, Sq) lse.
        sinks: (Hq,).
    """
    if sinks is None:
        return cast(Tensor, output)
    output, lse = output
    share = torch.sigmoid(lse - sinks.to(lse.dtype)[:, None])
    return (output * share[..., None]).to(output.dtype)


def _unpadded_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    marks: Tensor,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """`lrk_attention` in rows with holes."""
    if cu_seq_lens_q is not None:
        raise ValueError(PADDED_DOCUMENTS)
    asked = understood(BACKEND, module, query, key, None, **arguments)
    order = Unpadding.of(marks, query.shape[2])
    whole = position_ids is not None and position_ids.shape[-1] == key.shape[2]
    output = _attended(
        asked,
        ordered(query, order.queries),
        ordered(key, order.keys),
        ordered(value, order.keys),
        kv_lengths=order.kv_lengths,
        q_offset=order.q_offset,
        window_position_ids=(
            None if asked.window is None else order.rising(position_ids if whole else None)
        ),
    )
    output = ordered(output, order.queries.argsort(dim=1))
    return output.where(order.answered[:, None, :, None], 0).transpose(1, 2), None


def _split_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    split: SequenceSplit,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """`lrk_attention` from the tokens of this process to those of all."""
    if not arguments.get("positions_are_checked"):
        raise ValueError("sequence_split is given to a model that is not patched: lrk.patch(model)")
    outputs = []
    pairs = split.gathered(key, value)
    for queries, (keys, values), piece in zip(
        query.chunk(2, dim=2), pairs, split.pieces, strict=True
    ):
        asked = understood(BACKEND, module, queries, keys, None, **arguments)
        if not asked.causal:
            raise ValueError(
                "sequence_split is given where attention looks both ways; it is for causal models"
            )
        output = _attended(
            asked,
            queries,
            keys,
            values,
            cu_seqlens=piece.cu_seqlens,
            cu_seqlens_k=piece.cu_seqlens_k,
            window_position_ids=(
                None if asked.window is None else split.position_ids[:, : piece.stop]
            ),
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def understood(
    name: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    seq_idx: Tensor | None = None,
    attention_temperature: float = 1.0,
    output_attentions: bool | None = False,
    positions_are_checked: bool = False,
    **kwargs: Any,
) -> Asked:
    """What the arguments that transformers hands to an attention function ask for.

    Args:
        name: what `lrk.patch` knows the attention by, for messages.
        query: (B, Hq, Sq, D); key: (B, Hk, Sk, D).
        attention_mask: what `document_boundaries` returned for this forward pass, or None.
        cu_seq_lens_q: (N + 1,) boundaries of packed documents over the flattened B * Sq tokens.
        s_aux: (Hq,) sinks.
        attention_temperature: positive; queries are divided by it, and so the scores, before a
            softcap; sinks are not. Above 1 a query spreads its attention, as it does among more
            keys: see docs/proof.md.
        position_ids: (B or 1, Sq), in which a window counts; without boundaries they must not start
            again inside a row, which is looked at unless `positions_are_checked`.
        seq_idx: the documents of packed tokens once more; it needs `cu_seq_lens_q` beside it.
        kwargs: what models hand through to every attention.

    Raises:
        ValueError: for dropout, for a mask that the backend did not make, for padding and packed
            documents at once, for documents that only positions tell, for a window in the config
            that the model does not hand on, for a temperature that is not positive, and for an
            argument that is not known.
    """
    check_arguments(name, kwargs)
    if output_attentions:
        warn_of_weights(name)
    if dropout:
        raise ValueError(
            f"attention_dropout is {dropout}; the {name} attention has none: set it to 0 in the "
            "config"
        )
    if attention_temperature <= 0:
        raise ValueError(f"attention_temperature is {attention_temperature}; it must be positive")
    if attention_mask is not None:
        cu_seq_lens_q, cu_seq_lens_k = boundaries_of(attention_mask, cu_seq_lens_q, query.shape[2])
    check_seq_idx(seq_idx, cu_seq_lens_q)
    if cu_seq_lens_q is None and position_ids is not None and not positions_are_checked:
        cu_seq_lens_q = _without_restarts(position_ids, query, key)
    if sliding_window is None:
        _check_window(module, key.shape[2])
    causal = module.is_causal if is_causal is None else is_causal
    if sliding_window is not None and not causal:
        raise ValueError(
            f"sliding_window is {sliding_window} where attention looks both ways, and windows of "
            f"the {name} attention reach back alone: use another attn_implementation"
        )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    # A window counts positions, so that a model trained on skipped positions sees what it will see
    # at full length. A cache holds keys without their positions, but those do not skip.
    whole = position_ids is not None and position_ids.shape[-1] == key.shape[2]
    return Asked(
        causal=causal,
        cu_seqlens=cu_seq_lens_q,
        cu_seqlens_k=cu_seq_lens_k,
        window=sliding_window,
        window_position_ids=position_ids if whole and sliding_window is not None else None,
        scale=scaling / attention_temperature,
        softcap=softcap,
        sinks=s_aux,
    )


def check_arguments(name: str, kwargs: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Raise `ValueError` for arguments of an attention that are given and would be ignored.

    Args:
        name: what `lrk.patch` knows the attention by.
        kwargs: what its forward does not name.
        known: names among them that it looks at, or knows from elsewhere.
    """
    given = [argument for argument, value in kwargs.items() if value is not None]
    unknown = [each for each in given if each not in _WITHOUT_EFFECT and each not in known]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} reached the {name} attention, which does not know it: leave it "
            "out of the call, or use another attn_implementation where the model itself adds it"
        )


def check_patched(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise `ValueError` where another's attention would run without the checks of positions.

    Args:
        name: what `lrk.patch` knows the attention by.
        arguments: what reached its function.
    """
    if not arguments.get("positions_are_checked"):
        raise ValueError(
            f"the model is not patched, and attention {name!r} counts windows in tokens: use "
            f"lrk.patch(model, attention={name!r})"
        )


def warn_of_weights(name: str) -> None:
    """Say, once, that `output_attentions` gives None."""
    _logger.warning_once(f"the {name} attention forms no weights: output_attentions gives None")


def check_seq_idx(seq_idx: Tensor | None, cu_seq_lens_q: Tensor | None) -> None:
    """Raise `ValueError` for documents that `seq_idx` alone tells."""
    if seq_idx is not None and cu_seq_lens_q is None:
        raise ValueError("seq_idx packs documents; give their boundaries as cu_seq_lens_q too")


def _without_restarts(position_ids: Tensor, query: Tensor, key: Tensor) -> Tensor | None:
    """`ValueError` if positions say that a row packs documents; else None, or what amounts to it.

    All layers are given the very same tensor, so the first that attends looks, and notes it there.
    A result that is not used would be dropped from a compiled graph: in one, each layer is told by
    boundaries that a row is a document.
    """
    length = query.shape[2]
    if position_ids.shape[1:] != (length,) or key.shape[2] != length or length == 1:
        return None
    if torch.compiler.is_compiling():
        return _boundaries_of_rows(position_ids, query.shape[0])
    # Tensors of inference mode do not count how often they were written to.
    version = None if position_ids.is_inference() else position_ids._version
    if version is None or getattr(position_ids, _SEEN, None) != version:
        _boundaries_of_rows(position_ids, query.shape[0])
        setattr(position_ids, _SEEN, version)
    return None


def _check_window(module: Any, k_length: int) -> None:
    """Raise `ValueError` if the config hides keys of which the attention was not told.

    Chunks are said by a mask function, at which nobody looks in a model that is compiled.
    """
    config = getattr(module, "config", None)
    for name, kinds in (
        ("sliding_window", (None, "sliding_attention")),
        ("attention_chunk_size", ("chunked_attention",)),
    ):
        limit = getattr(config, name, None)
        if limit and k_length > limit and _layer_type(module) in kinds:
            raise ValueError(
                f"config.{name} is {limit}, but {type(module).__name__} does not hand it to its "
                "attention function, so the lrk attention would ignore it: use another "
                "attn_implementation"
            )


def _layer_type(module: Any) -> str | None:
    layer_types: dict[Any, str] = dict(enumerate(getattr(module.config, "layer_types", None) or ()))
    return layer_types.get(getattr(module, "layer_idx", None))


@torch.library.custom_op(
    "lrk::boundaries_of_rows", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _boundaries_of_rows(position_ids: Tensor, batch: int) -> Tensor:
    """(B + 1,) int32: each row one document, if (B or 1, S) positions do not start again in it."""
    if (position_ids.diff(dim=1) < 1).any():
        raise ValueError(POSITIONS_RESTART)
    length = position_ids.shape[1]
    return length * torch.arange(batch + 1, dtype=torch.int32, device=position_ids.device)


@_boundaries_of_rows.register_fake
def _(position_ids: Tensor, batch: int) -> Tensor:
    return position_ids.new_empty(batch + 1, dtype=torch.int32)


AttentionInterface.register(BACKEND, lrk_attention)
AttentionMaskInterface.register(BACKEND, document_boundaries)
