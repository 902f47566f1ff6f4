"""PCD: contrast a model with itself at perturbed frequencies (2506.08371).

The slow dimensions of RoPE, which tell far positions apart, are made faster. What is near hardly
moves by that, what is far does; so the difference of the two predictions is what far tokens
contribute, and it is added to the logits. It costs a second forward pass and a second cache, and
does not extend the window.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from lrk.decode.swapped import swapped
from lrk.field_types import check_types
from lrk.frequencies import (
    frequencies_by_length,
    rope_frequencies,
    rope_layer_types,
    rope_parameters,
)
from lrk.hf.architectures import architecture_of
from lrk.hf.cache_name import CACHE_NAME, either_cache_name, named_cache
from lrk.hf.causal_lm import LrkForCausalLM
from lrk.hf.rope import LrkRotaryEmbedding
from lrk.kernels.rope import phase_increments

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Contrast:
    """The numbers of `pcd`, checked; the defaults are the paper's."""

    alpha: float = 0.2
    beta: float = 2.5
    base_ratio: float = 1e-4
    gamma: int = 30

    def __post_init__(self) -> None:
        check_types(self)
        for name, fits, allowed in (
            ("alpha", 0 < self.alpha <= math.log(2), "positive, and at most ln 2, where T is 0"),
            ("beta", 0 <= self.beta < math.inf, "not negative, and finite"),
            ("base_ratio", 0 < self.base_ratio < 1, "between 0 and 1"),
            ("gamma", self.gamma >= 1, "at least 1"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {allowed}")


@contextmanager
def pcd(
    model: Model,
    alpha: float = Contrast.alpha,
    beta: float = Contrast.beta,
    base_ratio: float = Contrast.base_ratio,
    gamma: int = Contrast.gamma,
) -> Iterator[Model]:
    """Positional contrastive decoding (2506.08371); the defaults are the paper's.

    The logits `L` become `(1 + beta) L - beta L*` for the `gamma` likeliest tokens by `L`, and
    `-inf` for all others, where `L*` are the logits at `perturbed_frequencies`.

    Args:
        model: a causal language model patched by `lrk.patch` with `rope`.
        alpha: how much faster the slow dimensions turn for `L*`, positive, at most ln 2.
        beta: weight of the contrast, not negative.
        base_ratio: RoPE base of the perturbation over that of the model, below 1.
        gamma: how many tokens can be chosen.

    Raises:
        ValueError: for numbers out of range, and for a model that is not patched, is in such a
            block already, or has frequencies that depend on the length of the text.
    """
    numbers = Contrast(alpha, beta, base_ratio, gamma)
    causal_lm, rotary = _parts(model)
    config = rotary.config
    increments = {}
    for layer_type in rope_layer_types(config):
        rope_type = rope_parameters(config, layer_type).get("rope_type", "default")
        if frequencies_by_length(config, layer_type=layer_type) is not None:
            raise ValueError(
                f"rope_type is {rope_type!r}, whose frequencies depend on the length of the text; "
                "PCD perturbs frequencies that stay the same"
            )
        frequencies = perturbed_frequencies(config, alpha, base_ratio, layer_type)
        increments[layer_type] = phase_increments(frequencies)
    perturbed = _Perturbed(numbers, rotary, increments)
    with swapped([causal_lm], ContrastedForCausalLM, _lrk_perturbed=perturbed):
        yield model


def perturbed_frequencies(
    config: PretrainedConfig, alpha: float, base_ratio: float, layer_type: str | None = None
) -> Tensor:
    """`T theta_j + (1 - T) theta'_j` with `T = 2 - exp(alpha x)` and `x = 2 j / R`, `j = 1 .. R/2`.

    `theta_j` are the model's frequencies and `theta'_j = B' ** (-2 (j - 1) / R)` those of the
    smaller base `B' = base_ratio * rope_theta`.

    Args:
        layer_type: one of `lrk.frequencies.rope_layer_types(config)`.

    Returns:
        (R/2,) float64, radians per position.
    """
    inv_freq = rope_frequencies(config, layer_type).inv_freq
    x = torch.arange(1, len(inv_freq) + 1, dtype=torch.float64) / len(inv_freq)
    base = base_ratio * rope_parameters(config, layer_type)["rope_theta"]
    faster = base ** -(x - x[0])
    share = 2 - torch.exp(alpha * x)
    return share * inv_freq + (1 - share) * faster


def contrasted(logits: Tensor, perturbed: Tensor, beta: float, gamma: int) -> Tensor:
    """`(1 + beta) L - beta L*` where `L` (..., V) is among its `gamma` largest, else `-inf`.

    Float32 for all narrower dtypes: the contrast magnifies their rounding.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    kept = logits.topk(min(gamma, logits.shape[-1])).indices
    values = (1 + beta) * logits.to(exact) - beta * perturbed.to(exact)
    return torch.full_like(values, float("-inf")).scatter(-1, kept, values.gather(-1, kept))


class _Perturbed(NamedTuple):
    numbers: Contrast
    rotary: LrkRotaryEmbedding
    increments: dict[str | None, Tensor]

    @contextmanager
    def perturbing(self) -> Iterator[None]:
        """The model turns at the perturbed frequencies in this block."""
        rotary = self.rotary
        own = rotary._lrk_increments
        assert own is not None, "the ordinary forward pass comes first"
        rotary._lrk_increments = {
            kind: each.to(own[kind].device) for kind, each in self.increments.items()
        }
        try:
            yield
        finally:
            rotary._lrk_increments = own


class ContrastedForCausalLM(LrkForCausalLM):
    """A causal language model whose logits are contrasted."""

    config: PretrainedConfig
    _lrk_perturbed: _Perturbed

    @either_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | slice | Tensor = 0,
        *,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | MoeCausalLMOutputWithPast:
        """As the stock forward, for decoding only: `labels` are refused."""
        if labels is not None:
            raise ValueError("labels are given; contrasted logits are for decoding, not for a loss")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        second = None
        if cache is not None:
            second = _second_cache(cache, self.config.num_hidden_layers)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            "output_router_logits": output_router_logits,
            **kwargs,
            "return_dict": True,
        }
        outputs = super().forward(**named_cache(cache), **inputs)
        with self._lrk_perturbed.perturbing():
            perturbed = super().forward(**named_cache(second), **inputs)
        assert outputs.logits is not None
        assert perturbed.logits is not None
        numbers = self._lrk_perturbed.numbers
        outputs.logits = contrasted(outputs.logits, perturbed.logits, numbers.beta, numbers.gamma)
        return outputs


def _second_cache(cache: Cache, num_layers: int) -> Cache:
    """The layers behind those of the model, as a cache: they are made on first use.

    They are part of the first cache, so whatever happens to it (beams that are reordered, tokens
    that are taken back) happens to them.
    """
    if cache.offloading:
        raise ValueError(f"{CACHE_NAME} is offloaded, which PCD does not support")
    while len(cache.layers) < num_layers:
        assert cache.layer_class_to_replicate is not None
        cache.layers.append(cache.layer_class_to_replicate())
    if len(cache.layers) == num_layers:
        if cache.get_seq_length() > 0:
            raise ValueError(f"{CACHE_NAME} holds tokens already; with PCD it must start empty")
        cache.layers += [copy.deepcopy(layer) for layer in cache.layers]
    return Cache(layers=cache.layers[num_layers:])


def _parts(model: nn.Module) -> tuple[nn.Module, LrkRotaryEmbedding]:
    kind = type(model).__name__
    stock = architecture_of(getattr(model, "config", None), f"model is a {kind}")
    rotary = [module for module in model.modules() if isinstance(module, LrkRotaryEmbedding)]
    causal_lm = [module for module in model.modules() if isinstance(module, stock.causal_lm)]
    if not rotary or not causal_lm:
        raise ValueError(
            f"model is a {kind} that is not patched, or no causal language model: use "
            "lrk.patch(model, rope=True) before"
        )
    return causal_lm[0], rotary[0]
