"""Plans that stretch RoPE to a longer window, as stock `rope_parameters`.

RoPE is a base and divisors: a position turns pair `j` of `R/2` by `theta ** (-2 j / R) / d_j`
radians. A plan makes another base or other divisors of them, once and for the whole window, so that
nothing depends on the length of a text. Where a stock type says the result it has that type; any
other result is stock `longrope` with `short_factor = long_factor = d`, which transformers and vLLM
load alike.

In what follows a window of `L` tokens becomes one of `Lt`, and `f = Lt / L`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lrk.frequencies import (
    frequencies_of,
    geometric,
    rope_layer_types,
    rope_parameters,
    rotary_dim,
)
from lrk.positions import scaled_rope_theta
from lrk.rope_factors import RopeFactors

# What stock types say of themselves. Everything else (theta, partial_rotary_factor, Ministral's
# llama_4_scaling_beta, and the original window that this one counts in) holds whatever the type.
_OF_TYPES = frozenset(
    {
        *("rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        *("low_freq_factor", "high_freq_factor"),
        *("short_factor", "long_factor", "short_mscale", "long_mscale"),
    }
)
_QUERY_SCALE = "llama_4_scaling_beta"
# transformers takes Phi-3's yarn for longrope when it reads a config, and refuses other types.
_ONLY_LONGROPE = ("phi3",)
# Of 64 pairs Llama-3-8B has 29 that are slower than its window, of which the paper clips 20.
_CLIPPED_SHARE = 20 / 29
# In place of an infinite divisor: such a pair turns less than a rounding of float32 in any window.
_FROZEN = 2.0**40


class RopePlan(NamedTuple):
    """How RoPE is stretched."""

    name: str = "theta"
    """One of `ROPE_SCALINGS`."""
    theta: float | None = None
    """Of `theta`: the base; None is `scaled_rope_theta`."""
    factors: RopeFactors | None = None
    """Of `longrope`: the divisors."""
    critical_dimension: int | None = None
    """Of `ntk`: index of a pair; None is the fastest that does not turn once in the window."""


SCALED_THETA = RopePlan()
"""A larger base, `scaled_rope_theta`: the plan of a run that names none."""


def original_window(config: PretrainedConfig, kind: str | None) -> int:
    """`L0`, the window that a model was pretrained for, before RoPE was ever stretched.

    Plain RoPE (`default`, and `dynamic`, which is plain within its window) is what the model was
    trained with up to the window that it has. An original window that stands beside it is a word
    of another type, and means nothing, except where Ministral 3 scales its queries by it.

    Args:
        kind: of layers, as `rope_parameters` takes it.
    """
    parameters, window = rope_parameters(config, kind), config.max_position_embeddings
    is_plain = parameters.get("rope_type", "default") in ("default", "dynamic")
    if is_plain and _QUERY_SCALE not in parameters:
        return window
    return parameters.get("original_max_position_embeddings") or window


def check_window(config: PretrainedConfig, kind: str | None) -> None:
    """Refuse a YaRN model that reaches farther than its config says.

    Some model cards tell to write `yarn` into the config and leave the window as it was. Whatever
    multiplies the divisors by `Lt / L` would then stretch by YaRN's factor once more.

    Raises:
        ValueError: in one sentence.
    """
    parameters, window = rope_parameters(config, kind), config.max_position_embeddings
    factor = parameters.get("factor")
    if parameters.get("rope_type") != "yarn" or factor is None:
        return
    original = original_window(config, kind)
    reach = round(factor * original)
    if reach > window:
        raise ValueError(
            f"config.max_position_embeddings is {window}, but the model's yarn reaches {reach} "
            f"tokens ({factor:g} times {original}), so that it would be stretched twice: set it to "
            f"{reach}, or take rope_scaling 'yarn'"
        )


def scaled_rope_parameters(
    config: PretrainedConfig, target_length: int, plan: RopePlan = SCALED_THETA
) -> dict[str, Any]:
    """`rope_parameters` for a window of `target_length` tokens; the config is left as it is.

    Where layers have parameters by their type, those of sliding layers stay: no query of theirs
    sees a key farther than the sliding window, which the model was trained for already.

    Args:
        config: of any type of RoPE. The frequencies of `longrope` are those of its window; of
            `dynamic` they are those up to the window, which are all that its model was trained on.
        target_length: `Lt`. A window that the model has already changes nothing; an explicit
            `plan.theta` is taken all the same.
        plan: which one, and with what.

    Raises:
        ValueError: for a plan that is not in `ROPE_SCALINGS`, or that does not fit the config.
    """
    if plan.name not in ROPE_SCALINGS:
        raise ValueError(
            f"rope_scaling is {plan.name!r}; it must be one of {', '.join(ROPE_SCALINGS)}"
        )
    parameters = dict(config.rope_parameters)
    for kind in rope_layer_types(config):
        if kind is None:
            return _stretched(config, None, target_length, plan)
        parameters[kind] = _stretched(config, kind, target_length, plan)
    return parameters


def _stretched(
    config: PretrainedConfig, kind: str | None, target_length: int, plan: RopePlan
) -> dict[str, Any]:
    parameters, window = rope_parameters(config, kind), config.max_position_embeddings
    is_there = target_length <= window and plan.theta is None
    if is_there or _slides_within(config, kind, window):
        return dict(parameters)
    if plan.name != "yarn":  # The one that has its factor from the original window.
        check_window(config, kind)
    rope = _Rope.of(config, kind, max(window, target_length))
    scaled = ROPE_SCALINGS[plan.name](rope, plan)
    if config.model_type in _ONLY_LONGROPE and scaled["rope_type"] not in ("default", "longrope"):
        inv_freq, attention = frequencies_of(config, scaled)
        theta = scaled["rope_theta"]
        return rope.divided(theta, geometric(theta, rope.dim) / inv_freq, attention)
    return scaled


def _slides_within(config: PretrainedConfig, kind: str | None, window: int) -> bool:
    reach = getattr(config, "sliding_window", None)
    return kind == "sliding_attention" and reach is not None and reach <= window


class _Rope(NamedTuple):
    """RoPE of some layers before it is stretched."""

    parameters: dict[str, Any]
    """Stock, and static."""
    divisors: Tensor
    """`d`, (R/2,) float64."""
    attention_factor: float
    window: int
    target: int
    original: int
    """`L0`, the window of pretraining."""

    @classmethod
    def of(cls, config: PretrainedConfig, kind: str | None, target: int) -> "_Rope":
        parameters = {"rope_type": "default"} | rope_parameters(config, kind)
        parameters.pop("type", None)  # Old configs have it beside its new name.
        if parameters["rope_type"] == "dynamic":
            parameters = _without_type(parameters) | {"rope_type": "default"}
        if "max_position_embeddings" in parameters:  # Ministral 3 repeats the window here.
            parameters["max_position_embeddings"] = target
        inv_freq, attention = frequencies_of(config, parameters)
        if parameters["rope_type"] == "longrope":
            divisors = torch.tensor(parameters["long_factor"], dtype=torch.float64)
        else:
            dim = rotary_dim(config, kind)
            divisors = geometric(parameters["rope_theta"], dim) / inv_freq
        window = config.max_position_embeddings
        original = original_window(config, kind)
        return cls(parameters, divisors, attention, window, target, original)

    @property
    def kind(self) -> str:
        return self.parameters["rope_type"]

    @property
    def theta(self) -> float:
        return self.parameters["rope_theta"]

    @property
    def dim(self) -> int:
        """`R`."""
        return 2 * len(self.divisors)

    @property
    def factor(self) -> float:
        """`f`."""
        return self.target / self.window

    @property
    def turns(self) -> Tensor:
        """(R/2,) float64: how often each pair turns within the window."""
        return self.window * geometric(self.theta, self.dim) / self.divisors / (2 * math.pi)

    @property
    def scaled_theta(self) -> float:
        return scaled_rope_theta(self.theta, self.window, self.target, self.dim)

    @property
    def critical(self) -> int:
        """The fastest pair that does not turn once within the window; R/2 if all do.

        For `d = 1` it is `ceil(R/2 log_theta(L / 2 pi))` (LongRoPE2, 2502.20082, Eq. 7, which
        counts dimensions, two a pair).
        """
        return int((self.turns > 1).sum())

    def typed(self, rope_type: str, **own: Any) -> dict[str, Any]:
        """As another stock type."""
        return _without_type(self.parameters) | {"rope_type": rope_type} | own

    def divided(
        self, theta: float, divisors: Tensor, attention_factor: float | None = None
    ) -> dict[str, Any]:
        """Any base and divisors; the factor of cosine and sine is the model's own unless given."""
        attention = self.attention_factor if attention_factor is None else attention_factor
        factors = divisors.tolist()
        # vLLM does not read attention_factor; where its own number is another, these say so.
        implied = _longrope_attention(self.target, self.original)
        differs = not math.isclose(attention, implied, rel_tol=1e-9)
        mscale = {"short_mscale": attention, "long_mscale": attention} if differs else {}
        return self.typed(
            "longrope",
            rope_theta=theta,
            short_factor=factors,
            long_factor=list(factors),
            factor=self.target / self.original,
            original_max_position_embeddings=self.original,
            attention_factor=attention,
            **mscale,
        )

    def by_parts(self, low: float, high: float) -> Tensor:
        """Divisors where pairs of at most `low` turns are interpolated, and of `high` kept.

        Between them the share that is kept is linear in the turns (NTK-by-parts, 2309.00071, 3.2).
        """
        kept = ((self.turns - low) / (high - low)).clamp(0, 1)
        return self.divisors / ((1 - kept) / self.factor + kept)


def _without_type(parameters: dict[str, Any]) -> dict[str, Any]:
    kept = {"original_max_position_embeddings"} if _QUERY_SCALE in parameters else set()
    return {name: value for name, value in parameters.items() if name not in _OF_TYPES - kept}


def _longrope_attention(target: int, original: int) -> float:
    """LongRoPE's factor of cosine and sine, `sqrt(1 + ln(Lt / L0) / ln(L0))` (2402.13753)."""
    return math.sqrt(1 + math.log(max(target / original, 1)) / math.log(original))


def _theta(rope: _Rope, plan: RopePlan) -> dict[str, Any]:
    """A larger base: `scaled_rope_theta`, or the plan's. The divisors stay.

    Llama 3.1's bands do not: they are those of the new base, as stock `llama3` has them.
    """
    theta = rope.scaled_theta if plan.theta is None else plan.theta
    if rope.kind in ("default", "linear"):
        return rope.parameters | {"rope_theta": theta}
    if rope.kind == "llama3":
        # Absent, the original window would silently become the new one.
        own = {"rope_theta": theta, "original_max_position_embeddings": rope.original}
        return rope.parameters | own
    return rope.divided(theta, rope.divisors)


def _linear(rope: _Rope, plan: RopePlan) -> dict[str, Any]:
    """Position interpolation (Chen et al., 2306.15595): `d_j f`."""
    if rope.kind == "default":
        return rope.typed("linear", factor=rope.factor)
    if rope.kind == "linear":
        return rope.typed("linear", factor=rope.parameters["factor"] * rope.factor)
    return rope.divided(rope.theta, rope.divisors * rope.factor)


def _ntk(rope: _Rope, plan: RopePlan) -> dict[str, Any]:
    """The base at which the critical pair `c` gets the divisor `f`: `theta f ** (R / 2 c)`.

    Pairs that do not turn once in the window were trained on part of a turn, and need `d >= f` to
    stay in it (LongRoPE2, 2502.20082, Eq. 10). They begin at the theoretical `c`; in practice
    somewhat before, at pairs that are trained too little: 30 in place of 35 for Llama-3-8B, 25 in
    place of 31 for Phi-3-mini (section 3.2). This is the paper's "NTK-rcd" (Table 5), and the base
    is that of its Algorithm 2, line 7. At the last pair it is NTK-aware scaling,
    `theta f ** (R / (R - 2))`, which is also what is left where all pairs turn.
    """
    pairs = len(rope.divisors)
    critical = plan.critical_dimension
    if critical is None:
        critical = min(max(rope.critical, 1), pairs - 1)
    if not 1 <= critical < pairs:
        raise ValueError(
            f"rope_critical_dimension is {critical}; it counts pairs of rotated dimensions, of "
            f"which the model has {pairs}, so it must be between 1 and {pairs - 1}"
        )
    theta = rope.theta * rope.factor ** (pairs / critical)
    if rope.kind in ("default", "linear"):
        return rope.parameters | {"rope_theta": theta}
    return rope.divided(theta, rope.divisors)


def _yarn(rope: _Rope, plan: RopePlan) -> dict[str, Any]:
    """YaRN (2309.00071): slow pairs interpolate, fast ones stay; cosine and sine `0.1 ln f + 1`.

    A YaRN model gets the factor `Lt / L0` in place of its own. Stock `yarn` has its ramp over the
    index of the pair, as the paper's code; over divisors that it does not know, the ramp is over
    turns, from 1 to 32, as in the paper's section 3.2, and `0.1 ln f + 1` multiplies the factor
    that cosine and sine have already (ours).
    """
    if rope.kind == "default":
        return rope.typed(
            "yarn",
            factor=rope.target / rope.original,
            original_max_position_embeddings=rope.original,
        )
    if rope.kind == "yarn":
        parameters = dict(rope.parameters)
        given = parameters.pop("attention_factor", None)
        before = parameters.get("factor") or rope.window / rope.original
        # A factor of cosine and sine that only spells out YaRN's grows with it.
        if given is not None and not math.isclose(given, 0.1 * math.log(before) + 1, rel_tol=1e-6):
            parameters["attention_factor"] = given
        own = {"factor": rope.target / rope.original}
        return parameters | own | {"original_max_position_embeddings": rope.original}
    attention = rope.attention_factor * (0.1 * math.log(rope.factor) + 1)
    return rope.divided(rope.theta, rope.by_parts(1, 32), attention)


def _llama3(rope: _Rope, plan: RopePlan) -> dict[str, Any]:
    """Llama 3.1's bands: pairs of at most 1 turn are interpolated, of 4 and more kept.

    A Llama 3.1 model keeps its bands and original window, and its factor grows by `f`.
    """
    if rope.kind == "default":
        return rope.typed(
            "llama3",
            factor=rope.target / rope.original,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=rope.original,
        )
    if rope.kind == "llama3":
        own = {
            "factor": rope.parameters["factor"] * rope.factor,
            "original_max_position_embeddings": rope.original,
        }
        return rope.parameters | own
    return rope.divided(rope.theta, rope.by_parts(1, 4))


def _longrope(rope: _Rope, plan: RopePlan) -> dict[str, Any]:
    """LongRoPE (2402.13753, 2502.20082): the plan's divisors in place of the model's own."""
    factors = plan.factors
    if factors is None:
        raise ValueError("rope_factors is missing; rope_scaling 'longrope' needs a file of them")
    if len(factors.long_factor) != len(rope.divisors):
        raise ValueError(
            f"rope_factors has {len(factors.long_factor)} numbers in long_factor; the model needs "
            f"{len(rope.divisors)}, one for two of its {rope.dim} rotated dimensions"
        )
    for name, found, now in (
        ("target_length", factors.target_length, rope.target),
        (
            "original_max_position_embeddings",
            factors.original_max_position_embeddings,
            rope.original,
        ),
    ):
        if found is not None and found != now:
            raise ValueError(f"rope_factors were found for {name} {found}, which is {now} here")
    attention = factors.attention_factor
    if attention is None:
        attention = _longrope_attention(rope.target, rope.original)
    divisors = torch.tensor(factors.long_factor, dtype=torch.float64)
    return rope.divided(rope.theta, divisors, float(attention))


def _cope(rope: _Rope, plan: RopePlan) -> dict[str, Any]:
    """Clipped RoPE (CoPE, 2602.05258): a larger base, and the slowest pairs fade out.

    The base grows first (section 5.1; here to `scaled_rope_theta`). Then `n` frequencies, from the
    clipping onset to the slowest, are multiplied by a cosine taper from 1 to 0 (section 4.2). As
    in the released code it is even over the index: `cos(pi k / 2 (n - 1)) ** 2` for
    `k = 0 .. n - 1`. The paper's 20 of Llama-3-8B's 64 pairs are 20/29 of those that are slower
    than its window, and that share is taken of other models (ours).

    The last weight is 0, a pair that does not turn. Its divisor would be infinite, which JSON has
    no number for: it is 2 ** 40, with which the pair turns by less than float32 resolves.
    """
    slow = len(rope.divisors) - rope.critical
    count = round(_CLIPPED_SHARE * slow)
    divisors = rope.divisors.clone()
    if count > 1:
        left = torch.arange(count - 1, -1, -1, dtype=torch.float64)
        # The sine of what is left is exact where the cosine cancels.
        weight = (math.pi / 2 * left / (count - 1)).sin() ** 2
        weight[-1] = 1 / _FROZEN
        divisors[-count:] /= weight
    return rope.divided(rope.scaled_theta, divisors)


ROPE_SCALINGS: dict[str, Callable[[_Rope, RopePlan], dict[str, Any]]] = {
    "theta": _theta,
    "linear": _linear,
    "ntk": _ntk,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "cope": _cope,
}
"""The plans by their names."""


def rope_description(config: PretrainedConfig) -> str:
    """The RoPE of a config in words: the type, the base, and what else it says."""
    described = [
        (kind, _described(rope_parameters(config, kind))) for kind in rope_layer_types(config)
    ]
    return "; ".join(text if kind is None else f"{kind}: {text}" for kind, text in described)


def _described(parameters: dict[str, Any]) -> str:
    said = [parameters.get("rope_type", "default"), f"base {parameters['rope_theta']:,.0f}"]
    for name in ("factor", "attention_factor"):
        if parameters.get(name) is not None:
            said.append(f"{name.replace('_', ' ')} {parameters[name]:.6g}")
    if "long_factor" in parameters:
        divisors = parameters["long_factor"]
        said.append(f"divisors {min(divisors):.6g} to {max(divisors):.6g}")
    if "original_max_position_embeddings" in parameters:
        said.append(f"original window {parameters['original_max_position_embeddings']:,}")
    return ", ".join(said)
