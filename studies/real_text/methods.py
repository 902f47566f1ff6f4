"""The ways of extending a model's window that the study compares."""

from dataclasses import dataclass

from lrk import positions
from lrk.positions import Sampler
from studies.proof.methods import REACH, temperature
from studies.real_text.scale import Scale

CONTIGUOUS_SHARE = 0.3
"""Of samples that keep ordinary positions, as `lrk-train` has it by default."""
TEACHER_PASS = 4 / 3
"""FLOP of a step with a forward pass of a teacher, in those of one without."""


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        name: as the tables say it.
        length: tokens of a training sample; None trains nothing.
        sampler: positions of those samples that are spread.
        reach: over how many targets the positions are drawn.
        temperature: of the softmax of attention in training.
        share: of the training tokens of the others, in as many steps as full length has.
        views: weight of the divergence from the model's own predictions in ordinary positions. Such
            a method has fewer steps, so that its FLOP are those of the others.
        rope: whether RoPE is stretched, by its base.
        within: whether the model is read with its first window alone in view.
    """

    name: str
    length: int | None = None
    sampler: Sampler = positions.contiguous
    reach: float = 1
    temperature: float = 1
    share: float = 1
    views: float = 0
    rope: bool = True
    within: bool = False


BEST = "PoSE + reach + temperature"


def methods(scale: Scale) -> tuple[Method, ...]:
    """In the order in which they are run."""
    short = scale.short
    # Reach and power are those that `studies.proof.selection` chose on random tokens.
    near, far = (temperature(reach, target=scale.target, length=short) for reach in (1, REACH))
    spread = (REACH, far)
    return (
        Method("nothing", rope=False),
        Method("nothing, its window alone", rope=False, within=True),
        Method("theta only"),
        Method("short training", scale.window),
        Method("full length", scale.target),
        Method(BEST, short, positions.pose, *spread),
        Method("LongRecipe + temperature", short, positions.longrecipe, 1, near),
        Method(f"{BEST}, a third of the tokens", short, positions.pose, *spread, share=0.3),
        Method(f"{BEST} + views", short, positions.pose, *spread, views=1.0),
        Method("PoSE", short, positions.pose),
        Method("LongRecipe + reach + temperature", short, positions.longrecipe, *spread),
    )


def samples_a_step(method: Method, scale: Scale) -> int:
    """As many as have about the tokens of one sample of the target."""
    assert method.length is not None
    return max(1, round(method.share * scale.target / method.length))


def steps(method: Method, scale: Scale) -> int:
    if method.length is None:
        return 0
    tokens = scale.extension_tokens * method.share / (TEACHER_PASS if method.views else 1)
    return max(1, round(tokens / (samples_a_step(method, scale) * method.length)))


def training_tokens(method: Method, scale: Scale) -> int:
    if method.length is None:
        return 0
    return steps(method, scale) * samples_a_step(method, scale) * method.length
