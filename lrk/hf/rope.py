"""RoPE in a transformers model: the embedding hands out positions, the attention rotates by them.

transformers computes tables of cosines and sines once per forward pass, rounded to the dtype of the
activations. Here `position_embeddings` carries the raw positions and frequencies instead, and the
operation computes every angle exactly.
"""

import sys
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from lrk.frequencies import (
    DynamicFrequencies,
    LongRopeFrequencies,
    frequencies_by_length,
    rope_frequencies,
)
from lrk.hf.cache_name import either_cache_name, update
from lrk.kernels.rope import phase_increments, rope

PositionEmbeddings = tuple[Tensor, Tensor, float]

_logger = logging.get_logger(__name__)


class LrkRotaryEmbedding:
    """Mixed in before a stock rotary embedding, which has these attributes."""

    config: PretrainedConfig
    inv_freq: Tensor

    _lrk_increments: Tensor | None = None
    _lrk_attention_scaling: float
    _lrk_by_length: DynamicFrequencies | LongRopeFrequencies | None

    def forward(self, x: Tensor, position_ids: Tensor) -> PositionEmbeddings:
        """Positions, phase increments and scaling: the last three arguments of `rope`."""
        if self._lrk_increments is None or self._lrk_increments.device != x.device:
            self._make_increments(x.device)
        increments = self._lrk_increments
        assert increments is not None
        if self._lrk_by_length is not None:
            length = _text_length(position_ids, self._lrk_by_length)
            increments = phase_increments(self._lrk_by_length.at(length))
        return position_ids, increments, self._lrk_attention_scaling

    def prepare(self) -> None:
        """Make the increments now if the module has a device: a traced forward then finds them."""
        if self.inv_freq.device.type != "meta":
            self._make_increments(self.inv_freq.device)

    def _make_increments(self, device: torch.device) -> None:
        """From the config, in float64. Integers, so no cast of the model harms them.

        They are not registered as a buffer: loading into a model that was made on the meta device
        would overwrite it. The backward pass keeps them, so they must outlive inference mode.
        """
        with torch.inference_mode(False):
            inv_freq, self._lrk_attention_scaling = rope_frequencies(self.config)
            self._lrk_increments = phase_increments(inv_freq.to(device))
            self._lrk_by_length = frequencies_by_length(self.config, device)


def _text_length(
    position_ids: Tensor, by_length: DynamicFrequencies | LongRopeFrequencies
) -> Tensor:
    """() tokens of the longest text of a batch, counted as transformers does: the last position.

    Where positions skip, the last one is drawn at random, and a text stands for a longer one.

    Args:
        position_ids: (B, S). Those of padding may fall back, and so do those of another document.
    """
    length = position_ids.max() + 1
    before = position_ids.cummax(dim=1).values
    skips = (position_ids[:, 1:] - before[:, :-1] > 1).any()
    return torch.where(skips, by_length.with_skips(length), length)


def check_frequencies(rotary: Any) -> None:
    """Raise `ValueError` unless lrk's frequencies are those of a stock rotary embedding's config.

    Both are computed anew: those that the module holds may have been rounded, or be on no device.
    A type that asks for a length is compared within the window.
    """
    config = rotary.config
    kind = config.rope_parameters.get("rope_type", "default")
    with torch.device("cpu"):  # models are also made on the meta device
        ours, ours_scaling = rope_frequencies(config)
        by_length = frequencies_by_length(config)
        if by_length is not None:
            ours = by_length.at(torch.tensor(1))
        if kind == "default":
            theirs, scaling = rotary.compute_default_rope_parameters(config)
        else:
            theirs, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    if by_length is not None:
        _logger.warning_once(
            f"rope_type is {kind!r}, whose frequencies depend on the length of the text: where "
            f"positions skip, lrk takes those of {by_length.longest} tokens, and not those of "
            "whatever position comes last in the batch"
        )
    theirs = theirs.to(ours.dtype)
    same = theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-4, atol=0)
    if not same or abs(scaling - ours_scaling) > 1e-4 * abs(scaling):
        raise ValueError(
            f"rope_parameters are {config.rope_parameters}, of which lrk makes other frequencies "
            f"than transformers {transformers.__version__}: use lrk.patch(model, rope=False)"
        )


class LrkAttention:
    """Mixed in before a stock attention, which has these attributes."""

    config: PretrainedConfig
    layer_idx: int
    head_dim: int
    scaling: float
    attention_dropout: float
    training: bool
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    @either_cache_name
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: PositionEmbeddings,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """As the stock forward, with `rope` on the raw positions."""
        batch, length, _ = hidden_states.shape
        query, key, value = (
            projection(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rope(query, key, *position_embeddings)
        if cache is not None:
            key, value = update(cache, key, value, self.layer_idx, kwargs)
        # Each modeling file has its own eager attention, which is in no registry.
        eager = sys.modules[type(self).__module__].eager_attention_forward
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self._window(),
            **kwargs,
        )
        return self.o_proj(output.reshape(batch, length, -1).contiguous()), weights

    def _window(self) -> int | None:
        """Qwen2 has a window in some layers and says so there, Mistral in all, Llama in none."""
        if hasattr(self, "sliding_window"):
            return self.sliding_window
        return getattr(self.config, "sliding_window", None)
