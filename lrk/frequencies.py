"""RoPE frequencies of a transformers config, in float64.

transformers computes them in float32 and keeps them in a buffer that `model.to(torch.bfloat16)`
rounds: at position 131,071 float32 frequencies are off by 3.8e-3 rad, bfloat16 ones by 234 rad.
The types `dynamic` and `longrope` change the frequencies with the length of the text: there it is
taken from the largest position of each batch, which skipped positions make random. Here a length
is given, or they are resolved for the whole window.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

# Their rotary embeddings turn whole heads, whatever partial_rotary_factor says.
_WHOLE_HEADS = (
    *("gemma2", "gemma3_text", "gpt_oss", "granite", "llama", "ministral3", "mistral", "mixtral"),
    *("olmo2", "olmo3", "qwen2", "qwen3", "qwen3_moe", "smollm3"),
)


class RopeFrequencies(NamedTuple):
    """`inv_freq` (R/2,) float64 in radians per position, and the factor of cosine and sine."""

    inv_freq: Tensor
    attention_scaling: float


def rope_layer_types(config: PretrainedConfig) -> tuple[str | None, ...]:
    """The kinds of layers that have RoPE parameters of their own; (None,) where all share one set.

    OLMo 3 and Gemma 3 have a set for each of `config.layer_types`.
    """
    parameters = config.rope_parameters
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds or not kinds <= parameters.keys():
        return (None,)
    return tuple(sorted(kind for kind in kinds if parameters[kind] is not None))


def rope_parameters(config: PretrainedConfig, layer_type: str | None = None) -> dict[str, Any]:
    """Those of one of `rope_layer_types`."""
    parameters = config.rope_parameters
    return parameters if layer_type is None else parameters[layer_type]


def rope_frequencies(config: PretrainedConfig, layer_type: str | None = None) -> RopeFrequencies:
    """Frequencies of `config.rope_parameters`, for every position up to the whole window.

    `dynamic` is resolved at `factor * max_position_embeddings`, the length it was configured for;
    `longrope` at `max_position_embeddings`.

    Args:
        layer_type: one of `rope_layer_types(config)`.

    Raises:
        ValueError: for a `rope_type` that is not one of `ROPE_TYPES`.
    """
    return frequencies_of(config, rope_parameters(config, layer_type))


def frequencies_of(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    """As `rope_frequencies`, of parameters that need not be the config's own."""
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise ValueError(
            f"rope_type is {rope_type!r}; it must be one of {', '.join(sorted(ROPE_TYPES))}"
        )
    return ROPE_TYPES[rope_type](config, parameters)


def rotary_dim(config: PretrainedConfig, layer_type: str | None = None) -> int:
    """`R`, how many dimensions of a head are rotated."""
    return _rotary_dim(config, rope_parameters(config, layer_type))


def _rotary_dim(config: PretrainedConfig, parameters: dict[str, Any]) -> int:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type in _WHOLE_HEADS:
        return head_dim
    return int(head_dim * parameters.get("partial_rotary_factor", 1.0))


def geometric(theta: float, dim: int) -> Tensor:
    """`theta ** (-2 j / R)` for `j = 0 .. R/2 - 1`."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def _default(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    return RopeFrequencies(
        geometric(parameters["rope_theta"], _rotary_dim(config, parameters)), 1.0
    )


def _linear(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    """Position interpolation (Chen et al., 2306.15595): every frequency divided by the factor."""
    inv_freq, scaling = _default(config, parameters)
    return RopeFrequencies(inv_freq / parameters["factor"], scaling)


class DynamicFrequencies(NamedTuple):
    """Dynamic NTK at a text of n tokens: base `theta (f n / L - (f - 1)) ** (R / (R - 2))`."""

    inv_freq: Tensor
    """(R/2,) float64, up to the window."""
    exponent: Tensor
    """(R/2,) float64, `2 j / (R - 2)`."""
    factor: float
    window: int

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        parameters: dict[str, Any],
        device: torch.device | None = None,
    ) -> "DynamicFrequencies":
        dim = _rotary_dim(config, parameters)
        inv_freq = _default(config, parameters).inv_freq.to(device)
        exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / (dim - 2)
        return cls(inv_freq, exponent, parameters["factor"], config.max_position_embeddings)

    @property
    def longest(self) -> int:
        """The length that it was configured for, in tokens."""
        return int(self.factor * self.window)

    def with_skips(self, length: Tensor) -> Tensor:
        """() tokens of the text for which positions stand that skip and end at a length."""
        return torch.where(length > self.window, self.longest, length)

    def at(self, length: Tensor) -> Tensor:
        """(R/2,) float64 for a text of so many tokens, ()."""
        share = length.double().clamp(min=self.window) / self.window
        return self.inv_freq * (self.factor * share - (self.factor - 1)) ** -self.exponent


class LongRopeFrequencies(NamedTuple):
    """LongRoPE (2402.13753): a searched divisor per dimension, one set for short and for long."""

    short: Tensor
    """(R/2,) float64, up to the original window."""
    long: Tensor
    """(R/2,) float64, beyond."""
    original: int
    window: int

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        parameters: dict[str, Any],
        device: torch.device | None = None,
    ) -> "LongRopeFrequencies":
        inv_freq = _default(config, parameters).inv_freq
        short, long = (
            (inv_freq / torch.tensor(parameters[name], dtype=torch.float64)).to(device)
            for name in ("short_factor", "long_factor")
        )
        original = parameters["original_max_position_embeddings"]
        return cls(short, long, original, config.max_position_embeddings)

    @property
    def longest(self) -> int:
        """The length that it was configured for, in tokens."""
        return self.window

    def with_skips(self, length: Tensor) -> Tensor:
        """() tokens of the text for which positions stand that skip and end at a length."""
        return torch.full_like(length, self.longest)

    def at(self, length: Tensor) -> Tensor:
        """(R/2,) float64 for a text of so many tokens, ()."""
        return torch.where(length > self.original, self.long, self.short)


def frequencies_by_length(
    config: PretrainedConfig,
    device: torch.device | None = None,
    layer_type: str | None = None,
) -> DynamicFrequencies | LongRopeFrequencies | None:
    """What `rope_type` says for each length of a text; None for frequencies that do not ask.

    They do not ask either where `longrope` divides short and long texts alike.

    Args:
        device: where lengths will be.
        layer_type: one of `rope_layer_types(config)`.
    """
    parameters = rope_parameters(config, layer_type)
    kind = BY_LENGTH.get(parameters.get("rope_type", "default"))
    if kind is LongRopeFrequencies and parameters["short_factor"] == parameters["long_factor"]:
        return None
    return None if kind is None else kind.of(config, parameters, device)


def _dynamic(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    found = DynamicFrequencies.of(config, parameters)
    return RopeFrequencies(found.at(torch.tensor(found.longest)), 1.0)


def _yarn(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    """YaRN (2309.00071): fast dimensions extrapolate, slow ones interpolate, a ramp between."""
    dim, theta = _rotary_dim(config, parameters), parameters["rope_theta"]
    length = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or config.max_position_embeddings / length

    def dimension_of(turns: float) -> float:
        """Index of the dimension that turns so many times within the original window."""
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_of(parameters.get("beta_fast") or 32)
    high = dimension_of(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    inv_freq = geometric(theta, dim)
    return RopeFrequencies(
        inv_freq / factor * ramp + inv_freq * (1 - ramp), _yarn_scaling(parameters, factor)
    )


def _yarn_scaling(parameters: dict[str, Any], factor: float) -> float:
    given = parameters.get("attention_factor")
    if given is not None:
        return given

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    numerator, denominator = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return of(numerator) / of(denominator) if numerator and denominator else of(1.0)


def _longrope(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    found = LongRopeFrequencies.of(config, parameters)
    factor = parameters.get("factor") or found.window / found.original
    scaling = parameters.get("attention_factor")
    if scaling is None:
        scaling = math.sqrt(1 + math.log(factor) / math.log(found.original)) if factor > 1 else 1.0
    return RopeFrequencies(found.at(torch.tensor(found.longest)), scaling)


def _llama3(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    """Llama 3.1: long wavelengths are interpolated, short ones kept, those between blended."""
    inv_freq, scaling = _default(config, parameters)
    factor = parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * inv_freq / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return RopeFrequencies(inv_freq / factor * (1 - kept) + inv_freq * kept, scaling)


ROPE_TYPES: dict[str, Callable[[PretrainedConfig, dict[str, Any]], RopeFrequencies]] = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}

BY_LENGTH: dict[str, type[DynamicFrequencies] | type[LongRopeFrequencies]] = {
    "dynamic": DynamicFrequencies,
    "longrope": LongRopeFrequencies,
}
"""Types whose frequencies may depend on the length of the text: see `frequencies_by_length`."""
