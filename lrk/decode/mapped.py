"""SelfExtend, STRING and DCA in a patched model.

The cache holds keys that are not rotated: what a key is rotated by depends on the query. So each
step rotates the keys anew, which costs about as much memory traffic as reading them to attend.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache

from lrk.decode.attention import mapped_attention
from lrk.decode.documents import Document, check_contiguous, documents
from lrk.decode.position_maps import DualChunk, PositionMap, SelfExtend, String
from lrk.decode.swapped import swapped
from lrk.hf.attention import BACKEND, check_arguments, check_seq_idx, warn_of_weights
from lrk.hf.cache_name import either_cache_name, update
from lrk.hf.document_boundaries import boundaries_of
from lrk.hf.rope import ROTATION, LrkAttention, PositionEmbeddings, is_interleaved
from lrk.hf.signatures import check_signature
from lrk.hf.stock_forward import check_names

Model = TypeVar("Model", bound=nn.Module)

# All that the forward of a stock attention may read.
_KNOWN = (
    *("shape", "head_dim", "q_proj", "k_proj", "v_proj", "o_proj", "view", "transpose", "reshape"),
    *("contiguous", ROTATION, "update", "layer_idx", "ALL_ATTENTION_FUNCTIONS", "get_interface"),
    *("config", "_attn_implementation", "eager_attention_forward", "training"),
    *("attention_dropout", "scaling", "getattr", "sliding_window"),
)
_LOOKED_AT = ("position_ids", "positions_are_checked", "seq_idx", "is_causal", "output_attentions")


@contextmanager
def self_extend(model: Model, window: int, group: int) -> Iterator[Model]:
    """Read texts of up to `(L - window) * group + window` tokens with a window of `L`.

    SelfExtend (2401.01325): a query sees the last `window` tokens at their distances, and what is
    before at distances counted in groups of `group` tokens.

    Args:
        model: patched by `lrk.patch` with `rope` and `attention`.
        window: in tokens, a multiple of `group`. The paper takes 512 to 1,024.
        group: in tokens.

    Raises:
        ValueError: for numbers out of range, and for a model that is not patched, has a sliding
            window, or is in such a block already.
    """
    with _mapped(model, SelfExtend(window, group)):
        yield model


@contextmanager
def string(model: Model, shift: int, window: int = String.window) -> Iterator[Model]:
    """Replace the distances that pretraining saw rarely (STRING, 2410.18745).

    Distances above `shift` become smaller by `shift - window`, so the longest of a text of `L`
    tokens is `L - 1 - shift + window`.

    Args:
        model: patched by `lrk.patch` with `rope` and `attention`.
        shift: in tokens. The paper takes a third of the pretrained window.
        window: in tokens, at most `shift`.

    Raises:
        ValueError: as `self_extend`.
    """
    with _mapped(model, String(shift, window)):
        yield model


@contextmanager
def dca(model: Model, chunk: int, length: int) -> Iterator[Model]:
    """Read texts of any length in chunks, at distances below `length` (DCA, 2402.17463).

    Args:
        model: patched by `lrk.patch` with `rope` and `attention`.
        chunk: in tokens, below `length`. The paper takes three quarters of it.
        length: the pretrained window.

    Raises:
        ValueError: as `self_extend`.
    """
    with _mapped(model, DualChunk(chunk, length)):
        yield model


class MappedAttention(LrkAttention):
    """The attention of a patched model, with positions from a map."""

    layer_idx: int
    head_dim: int
    scaling: float
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    _lrk_decoding: "_Decoding"

    @classmethod
    def over(cls, stock: type[Any]) -> dict[str, Any]:
        """Refuse an attention that does more than Llama's; see `lrk.hf.mixed.mixed`."""
        check_signature(stock, cls)
        check_names(stock, _KNOWN, "position maps are for attentions like Llama's")
        if is_interleaved(stock):
            raise ValueError(
                f"{stock.__name__} turns dimension 2 j with 2 j + 1, and a position map turns j "
                "with j + R/2"
            )
        return {}

    @either_cache_name
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: PositionEmbeddings,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        *,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, None]:
        """As `LrkAttention.forward`; the cache keeps keys before their rotation."""
        # Positions come with `position_embeddings` too, and `_Decoding` checks those.
        check_arguments(BACKEND, kwargs, known=_LOOKED_AT)
        check_seq_idx(kwargs.get("seq_idx"), cu_seq_lens_q)
        if kwargs.get("is_causal") is False:
            raise ValueError("is_causal is False; a decoding method reads from left to right")
        if kwargs.get("output_attentions"):
            warn_of_weights(BACKEND)
        batch, length, _ = hidden_states.shape
        query, key, value = (
            projection(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            key, value = update(cache, key, value, self.layer_idx, kwargs)
        position_ids, frequencies = position_embeddings
        found = self._lrk_decoding.documents(
            position_ids,
            (batch, length),
            key.shape[2],
            attention_mask,
            cu_seq_lens_q,
            cu_seq_lens_k,
        )
        output = torch.zeros_like(query)
        for rows, queries, keys in found:
            output[rows, :, queries] = mapped_attention(
                query[rows, :, queries],
                key[rows, :, keys],
                value[rows, :, keys],
                self._lrk_decoding.position_map,
                *frequencies,
                self.scaling,
            )
        return self.o_proj(output.transpose(1, 2).reshape(batch, length, -1)), None


class _Decoding:
    """A position map, and the documents of the current forward pass, found by its first layer."""

    def __init__(self, position_map: PositionMap) -> None:
        self.position_map = position_map
        self._tensors: tuple[Tensor | None, ...] = (None,) * 4
        self._lengths = (0, 0, 0)
        self._found: list[Document] = []

    def documents(
        self,
        position_ids: Tensor,
        shape: tuple[int, int],
        k_length: int,
        attention_mask: Tensor | None,
        cu_seq_lens_q: Tensor | None,
        cu_seq_lens_k: Tensor | None,
    ) -> list[Document]:
        # All layers of a forward pass are given the very same tensors.
        tensors = (position_ids, attention_mask, cu_seq_lens_q, cu_seq_lens_k)
        same = all(one is two for one, two in zip(tensors, self._tensors, strict=True))
        if not same or self._lengths != (*shape, k_length):
            self._tensors, self._lengths = tensors, (*shape, k_length)
            if attention_mask is not None:
                cu_seq_lens_q, cu_seq_lens_k = boundaries_of(
                    attention_mask, cu_seq_lens_q, shape[1]
                )
            self._found = documents(shape, k_length, cu_seq_lens_q, cu_seq_lens_k)
            check_contiguous(position_ids, self._found)
        return self._found


@contextmanager
def _mapped(model: nn.Module, position_map: PositionMap) -> Iterator[None]:
    attentions: list[Any] = [
        module for module in model.modules() if isinstance(module, LrkAttention)
    ]
    if not attentions or any(each.config._attn_implementation != BACKEND for each in attentions):
        raise ValueError(
            f"model is a {type(model).__name__} that is not patched with lrk's "
            "RoPE and attention: use lrk.patch(model, rope=True, attention=True) before"
        )
    for window in (_window_of(each) for each in attentions):
        if window is not None:
            raise ValueError(
                f"model has a sliding window of {window} tokens, beyond which positions do nothing"
            )
    with swapped(attentions, MappedAttention, _lrk_decoding=_Decoding(position_map)):
        yield


def _window_of(attention: Any) -> int | None:
    """Qwen2 has a window in some layers and says so there, Mistral in all, Llama in none."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(attention.config, "sliding_window", None)
