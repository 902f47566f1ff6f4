"""The search itself: a model, samples, and what is found for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lrk.frequencies import frequencies_of, geometric, rope_layer_types, rope_parameters, rotary_dim
from lrk.longrope.evolution import Evolution
from lrk.longrope.needles import NeedleSample
from lrk.longrope.space import Candidate, SearchSpace
from lrk.longrope.trial import loss_with
from lrk.longrope.trials import Trials
from lrk.progress import progress
from lrk.rope_factors import RopeFactors
from lrk.rope_scaling import (
    ROPE_SCALINGS,
    RopePlan,
    check_window,
    original_window,
    scaled_rope_parameters,
)

_FULL = "full_attention"


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        factors: the divisors, and what they were found for.
        critical: the practical critical dimension, an index of frequencies.
        theoretical: the theoretical one.
        loss: of the needles, in nats a token; the lowest of all trials on record.
        initial: the lowest loss of the first candidates, one factor for each critical dimension.
        trials: how many candidates were tried.
    """

    factors: RopeFactors
    critical: int
    theoretical: int
    loss: float
    initial: float
    trials: int

    @property
    def plan(self) -> RopePlan:
        """To extend the model by."""
        return RopePlan("longrope", factors=self.factors)

    def to_dict(self) -> dict[str, Any]:
        """As `rope_scaling: longrope` reads it, and beside that how it was found."""
        factors = {key: value for key, value in self.factors._asdict().items() if value is not None}
        return factors | {
            "search": {
                "critical_dimension": self.critical,
                "theoretical_critical_dimension": self.theoretical,
                "loss": self.loss,
                "initial_loss": self.initial,
                "trials": self.trials,
            }
        }


class Rope(NamedTuple):
    """RoPE of a model as it comes, in the layers that are stretched.

    Attributes:
        inv_freq: (R/2,) float64 radians per position.
        divisors: (R/2,) float64, of `theta ** (-2 j / R)`; all 1 unless it was extended before.
        window: tokens that it reaches.
        original: tokens that it reached before it was ever extended.
    """

    inv_freq: Tensor
    divisors: Tensor
    window: int
    original: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Rope":
        """Of the layers with full attention, where sliding ones have RoPE parameters of their own.

        Of `dynamic` the frequencies up to the window are meant.

        Raises:
            ValueError: as `lrk.rope_scaling.check_window`.
        """
        kind = _stretched_kind(config)
        check_window(config, kind)
        parameters = rope_parameters(config, kind)
        if parameters.get("rope_type") == "dynamic":
            parameters = parameters | {"rope_type": "default"}
        inv_freq = frequencies_of(config, parameters).inv_freq
        divisors = _pure(config, kind) / inv_freq
        window = config.max_position_embeddings
        return cls(inv_freq, divisors, window, original_window(config, kind))

    def space(self, target_length: int) -> SearchSpace:
        """What there is to search; raises as `SearchSpace.of`."""
        return SearchSpace.of(self.inv_freq, self.window, target_length)

    def plan(
        self, candidate: Candidate, target_length: int, attention_factor: float | None
    ) -> RopePlan:
        """The factors of a candidate, and those that the model has already."""
        total = self.divisors * torch.tensor(candidate.factors, dtype=torch.float64)
        factors = RopeFactors(tuple(total.tolist()), attention_factor, target_length, self.original)
        return RopePlan("longrope", factors=factors)


def search_factors(
    model: PreTrainedModel,
    samples: Sequence[NeedleSample],
    target_length: int,
    evolution: Evolution,
    trials: Trials,
    attention_factor: float | None = None,
) -> Found:
    """Find the factors with which a model as it is loses least on samples of the target's length.

    Args:
        model: patched by `lrk.patch`; its weights stay where they are.
        samples: read in ordinary positions.
        target_length: tokens to reach.
        evolution: how much is tried.
        trials: those that were made before, by which a search that was stopped goes on.
        attention_factor: of cosine and sine. The papers have none; None is that of the authors'
            models, `sqrt(1 + ln(Lt / L0) / ln(L0))`.

    Raises:
        ValueError: for a target within the model's window, a model with fewer than 4 rotated
            dimensions, or one whose loss is not finite.
        SaveError: if a trial cannot be written.
    """
    rope = Rope.of(model.config)
    space = rope.space(target_length)
    lowest = float("inf")

    def computed(candidate: Candidate) -> float:
        plan = rope.plan(candidate, target_length, attention_factor)
        return loss_with(model, samples, target_length, plan)

    with progress("candidates", evolution.trials(space)) as advance:

        def loss(candidate: Candidate) -> float:
            nonlocal lowest
            found = trials.loss(candidate, computed)
            lowest = min(lowest, found)
            advance(note=f"lowest loss {lowest:.4f}")
            return found

        evolution.best(space, loss)
    # More may be on record than this evolution tried: one with fewer iterations takes nothing back.
    best, lowest = trials.best()
    factors = rope.plan(best, target_length, attention_factor).factors
    assert factors is not None
    return Found(
        factors=factors,
        critical=best.critical,
        theoretical=space.highest,
        loss=lowest,
        initial=trials.lowest_of(space.highest - space.lowest + 1),
        trials=len(trials),
    )


def losses_by_plan(
    model: PreTrainedModel, samples: Sequence[NeedleSample], found: Found
) -> dict[str, dict[str, float]]:
    """Nats a token of the answers, with what was found ("longrope") and with each other plan.

    What attention multiplies cosine and sine by may matter more than the divisors, and plans differ
    in it. So "own" is the loss of a plan as it is, and "same" with the factor of what was found.

    Args:
        samples: others than those of the search, which flatter what was found with them.
    """
    target = found.factors.target_length
    assert target is not None
    plans = {name: RopePlan(name) for name in ROPE_SCALINGS if name != "longrope"}
    plans[f"ntk at {found.critical}"] = RopePlan("ntk", critical_dimension=found.critical)
    losses = {
        name: {
            "own": loss_with(model, samples, target, plan),
            "same": loss_with(model, samples, target, _alike(model.config, plan, found.factors)),
        }
        for name, plan in plans.items()
    }
    loss = loss_with(model, samples, target, found.plan)
    return losses | {"longrope": {"own": loss, "same": loss}}


def _alike(config: PretrainedConfig, plan: RopePlan, found: RopeFactors) -> RopePlan:
    """The divisors of a plan, and all else as it was found."""
    assert found.target_length is not None
    kind = _stretched_kind(config)
    stretched = scaled_rope_parameters(config, found.target_length, plan)
    parameters = stretched if kind is None else stretched[kind]
    divisors = _pure(config, kind) / frequencies_of(config, parameters).inv_freq
    return RopePlan("longrope", factors=found._replace(long_factor=tuple(divisors.tolist())))


def _stretched_kind(config: PretrainedConfig) -> str | None:
    """The kind of layers that is stretched; None where all share their RoPE."""
    kinds = rope_layer_types(config)
    return _FULL if _FULL in kinds else kinds[0]


def _pure(config: PretrainedConfig, kind: str | None) -> Tensor:
    """`theta ** (-2 j / R)`, (R/2,), with the base of a model as it comes."""
    theta = rope_parameters(config, kind)["rope_theta"]
    return geometric(theta, rotary_dim(config, kind))
