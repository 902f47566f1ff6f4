"""Norms and MLPs of a transformers model in tiles along the sequence: see `lrk.memory.tiles`.

Attention needs the whole sequence. What is left of a layer are its norms, its MLP and the second
residual sum; beside the layers there is the last norm.
"""

import inspect
from typing import Any, ClassVar

from torch import Tensor, nn

from lrk.hf.cache_name import under_its_name
from lrk.hf.stock_forward import check_names, names_read
from lrk.memory.tiles import tiled

_ATTENTION, _RESIDUAL_MULTIPLIER = "self_attn", "residual_multiplier"

# All that the forward of a layer may read.
_KNOWN = (
    *("input_layernorm", _ATTENTION, "post_self_attn_layernorm", "resid_attn_dropout"),
    *("post_attention_layernorm", "pre_feedforward_layernorm"),
    *("mlp", "post_mlp_layernorm", "post_feedforward_layernorm", "resid_mlp_dropout"),
    _RESIDUAL_MULTIPLIER,
)


class LrkRMSNorm:
    """Mixed in before a stock norm, which has these attributes."""

    weight: nn.Parameter

    _lrk_tile_tokens: int

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As the stock forward, which keeps three wide copies of its input."""
        stock = super().forward  # type: ignore[misc]
        # A norm of each head has a row for each token and head, in either order. Heads are fewer.
        heads = min(hidden_states.shape[1:-1]) if hidden_states.ndim == 4 else 1
        return tiled(stock, hidden_states, [self.weight], heads * self._lrk_tile_tokens)


class LrkDecoderLayer:
    """Mixed in before a stock decoder layer: two residual sums, of what modules make in a row."""

    self_attn: nn.Module

    _lrk_arguments: ClassVar[tuple[str, ...]]
    """Those of the stock forward behind the first, in order."""
    _lrk_first_half: ClassVar[tuple[str, ...]]
    """The modules before the first sum, in order; the attention is one of them."""
    _lrk_second_half: ClassVar[tuple[str, ...]]
    _lrk_scales_residuals: ClassVar[bool]
    _lrk_tile_tokens: int

    @classmethod
    def over(cls, stock: type[Any]) -> dict[str, Any]:
        """The order of the modules, as the stock forward names them; see `lrk.hf.mixed.mixed`."""
        check_names(stock, _KNOWN)
        names = names_read(stock)
        modules = tuple(name for name in names if name != _RESIDUAL_MULTIPLIER)
        middle = modules.index(_first_of_second_half(modules))
        return {
            "_lrk_arguments": tuple(inspect.signature(stock.forward).parameters)[2:],
            "_lrk_first_half": modules[:middle],
            "_lrk_second_half": modules[middle:],
            "_lrk_scales_residuals": _RESIDUAL_MULTIPLIER in names,
        }

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the stock forward, its second half in tiles."""
        kwargs |= zip(self._lrk_arguments[: len(args)], args, strict=True)
        kwargs = under_its_name(kwargs)
        attended = hidden_states
        for name in self._lrk_first_half:
            if name == _ATTENTION:
                attended, _ = self.self_attn(hidden_states=attended, **kwargs)
            else:
                attended = getattr(self, name)(attended)
        hidden_states = hidden_states + self._scaled(attended)
        parameters = [
            parameter
            for name in self._lrk_second_half
            for parameter in getattr(self, name).parameters()
        ]
        return tiled(self._second_half, hidden_states, parameters, self._lrk_tile_tokens)

    def _second_half(self, hidden_states: Tensor) -> Tensor:
        made = hidden_states
        for name in self._lrk_second_half:
            made = getattr(self, name)(made)
        return hidden_states + self._scaled(made)

    def _scaled(self, made: Tensor) -> Tensor:
        if not self._lrk_scales_residuals:
            return made
        return made * getattr(self, _RESIDUAL_MULTIPLIER)


def _first_of_second_half(modules: tuple[str, ...]) -> str:
    """`post_attention_layernorm` is before the MLP, or behind the attention.

    It is behind where the norm before the MLP has another name, and where a layer has norms behind
    its modules alone.
    """
    if "pre_feedforward_layernorm" in modules:
        return "pre_feedforward_layernorm"
    return "post_attention_layernorm" if "input_layernorm" in modules else "mlp"
