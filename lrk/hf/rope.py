"""RoPE in a transformers model: the embedding hands out positions, the attention rotates by them.

transformers computes tables of cosines and sines once per forward pass, rounded to the dtype of the
activations. Here `position_embeddings` carries the raw positions and frequencies instead, and the
operation computes every angle exactly.
"""

import sys

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrk.frequencies import rope_frequencies
from lrk.hf.cache_name import either_cache_name, update
from lrk.kernels.rope import phase_increments, rope

PositionEmbeddings = tuple[Tensor, Tensor, float]


class LrkRotaryEmbedding:
    """Mixed in before a stock rotary embedding, which has these attributes."""

    config: PretrainedConfig
    inv_freq: Tensor

    _lrk_increments: Tensor | None = None
    _lrk_attention_scaling: float

    def forward(self, x: Tensor, position_ids: Tensor) -> PositionEmbeddings:
        """Positions, phase increments and scaling: the last three arguments of `rope`."""
        if self._lrk_increments is None or self._lrk_increments.device != x.device:
            self._make_increments(x.device)
        assert self._lrk_increments is not None
        return position_ids, self._lrk_increments, self._lrk_attention_scaling

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
