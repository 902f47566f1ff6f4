"""RoPE frequencies of a transformers config, in float64.

transformers computes them in float32 and keeps them in a buffer that `model.to(torch.bfloat16)`
rounds: at position 131,071 float32 frequencies are off by 3.8e-3 rad, bfloat16 ones by 234 rad.
The types `dynamic` and `longrope` there change the frequencies with the largest position of each
batch, which skipped positions make random; here they are resolved once, for the whole window.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig


class RopeFrequencies(NamedTuple):
    """`inv_freq` (R/2,) float64 in radians per position, and the factor of cosine and sine."""

    inv_freq: Tensor
    attention_scaling: float


def rope_frequencies(config: PretrainedConfig) -> RopeFrequencies:
    """Frequencies of `config.rope_parameters`, for every position up to the whole window.

    `dynamic` is resolved at `factor * max_position_embeddings`, the length it was configured for;
    `longrope` at `max_position_embeddings`.

    Raises:
        ValueError: for a `rope_type` that is not one of `ROPE_TYPES`.
    """
    parameters = config.rope_parameters
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise ValueError(
            f"rope_type is {rope_type!r}; it must be one of {', '.join(sorted(ROPE_TYPES))}"
        )
    return ROPE_TYPES[rope_type](config, parameters)


def rotary_dim(config: PretrainedConfig) -> int:
    """`R`, how many dimensions of a head are rotated."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))


def _geometric(theta: float, dim: int) -> Tensor:
    """`theta ** (-2 j / R)` for `j = 0 .. R/2 - 1`."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def _default(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    return RopeFrequencies(_geometric(parameters["rope_theta"], rotary_dim(config)), 1.0)


def _linear(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    """Position interpolation (Chen et al., 2306.15595): every frequency divided by the factor."""
    inv_freq, scaling = _default(config, parameters)
    return RopeFrequencies(inv_freq / parameters["factor"], scaling)


def _dynamic(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    """Dynamic NTK at `n = f L`: base `theta (f n / L - (f - 1)) ** (R / (R - 2))`."""
    dim, factor = rotary_dim(config), parameters["factor"]
    stretch = factor * factor - (factor - 1)
    theta = parameters["rope_theta"] * stretch ** (dim / (dim - 2))
    return RopeFrequencies(_geometric(theta, dim), 1.0)


def _yarn(config: PretrainedConfig, parameters: dict[str, Any]) -> RopeFrequencies:
    """YaRN (2309.00071): fast dimensions extrapolate, slow ones interpolate, a ramp between."""
    dim, theta = rotary_dim(config), parameters["rope_theta"]
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
    inv_freq = _geometric(theta, dim)
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
    """LongRoPE (2402.13753): a searched divisor per dimension, one set for short and for long."""
    length = parameters["original_max_position_embeddings"]
    target = config.max_position_embeddings
    factor = parameters.get("factor") or target / length
    divisors = parameters["long_factor" if target > length else "short_factor"]
    scaling = parameters.get("attention_factor")
    if scaling is None:
        scaling = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    inv_freq = _geometric(parameters["rope_theta"], rotary_dim(config))
    return RopeFrequencies(inv_freq / torch.tensor(divisors, dtype=torch.float64), scaling)


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
