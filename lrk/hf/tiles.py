"""Norms and MLPs of a transformers model in tiles along the sequence: see `lrk.memory.tiles`.

Attention needs the whole sequence. What is left of a layer are its two norms, its MLP and the
second residual sum; beside the layers there is the last norm.
"""

from typing import Any

from torch import Tensor, nn
from transformers import Cache

from lrk.hf.cache_name import either_cache_name, named_cache
from lrk.memory.tiles import tiled


class LrkRMSNorm:
    """Mixed in before a stock norm, which has these attributes."""

    weight: nn.Parameter

    _lrk_tile_tokens: int

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As the stock forward, which keeps three wide copies of its input."""
        stock = super().forward  # type: ignore[misc]
        return tiled(stock, hidden_states, [self.weight], self._lrk_tile_tokens)


class LrkDecoderLayer:
    """Mixed in before a stock decoder layer, which has these attributes."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    _lrk_tile_tokens: int

    @either_cache_name
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """As the stock forward, its second half in tiles."""
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **named_cache(cache),
            **kwargs,
        )
        parameters = [*self.post_attention_layernorm.parameters(), *self.mlp.parameters()]
        return tiled(self._second_half, hidden_states + attended, parameters, self._lrk_tile_tokens)

    def _second_half(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
