"""The ways of extending a model's window that the study compares."""

import math
from dataclasses import dataclass, replace

from lrk import positions
from lrk.positions import Sampler
from lrk.rope_scaling import ROPE_SCALINGS

WINDOW = 128
TARGET = 1024
SHORT = round(0.3 * TARGET)
"""Tokens of a sample whose positions are spread: 30 % of the target."""

REACH = 4
"""Over how many targets positions are drawn; distances near the end of a window are rare in it."""
POWER = 0.5
"""Of the temperature: see `temperature` and docs/proof.md."""


def temperature(
    reach: float, power: float = POWER, target: int = TARGET, length: int = SHORT
) -> float:
    """Of attention in training on samples of a length: log(reach * target) / log(length), to a
    power."""
    return (math.log(reach * target) / math.log(length)) ** power


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        name: as the tables say it.
        length: tokens of a training sample; None trains nothing.
        sampler: their positions.
        reach: over how many targets the positions are drawn.
        temperature: of the softmax of attention in training; None is transformers' own 1.
        rope_scaling: how RoPE is stretched to TARGET, one of `lrk.rope_scaling`; None leaves it.
        patched: whether lrk runs the model in training, or transformers as it comes.
        decoding: how it is measured, as `lrk-eval` takes it; None is as the model does by itself.
        share: of the training tokens of the others; steps have fewer samples then.
        views: weight of the divergence from the model's own predictions in ordinary positions.
        contiguous_share: of the samples, which keep ordinary positions.
    """

    name: str
    length: int | None = None
    sampler: Sampler = positions.contiguous
    reach: float = 1
    temperature: float | None = None
    rope_scaling: str | None = "theta"
    patched: bool = True
    decoding: str | None = None
    share: float = 1
    views: float = 0
    contiguous_share: float = 0


SAMPLERS = {"PoSE": positions.pose, "LongRecipe": positions.longrecipe}


def spread(
    sampler: str, reach: float = 1, power: float = POWER, tail: str = "", **options: float
) -> Method:
    """A sampler with temperature, and with reach unless it is 1, by the name that says so.

    Args:
        tail: of the name.
        options: further attributes.
    """
    added = (" + reach" if reach != 1 else "") + (" + temperature" if power else "")
    return Method(
        *(sampler + added + tail, SHORT, SAMPLERS[sampler], reach, temperature(reach, power)),
        **options,
    )


VIEWS, THIRD, CONTIGUOUS = " + views", ", a third of the tokens", ", 30 % contiguous"
POSE, LONGRECIPE = "PoSE + reach + temperature", "LongRecipe + temperature"
FULL = "full length"

COMPARED = (
    Method(FULL, TARGET),
    Method("PoSE", SHORT, positions.pose),
    Method("LongRecipe", SHORT, positions.longrecipe),
    spread("PoSE", REACH),
    spread("PoSE", REACH, power=0),
    spread("PoSE"),
    spread("LongRecipe", REACH),
    spread("LongRecipe"),
    spread("PoSE", REACH, tail=CONTIGUOUS, contiguous_share=0.3),
    spread("PoSE", REACH, tail=THIRD, share=SHORT / TARGET),
    spread("PoSE", REACH, tail=VIEWS, views=1),
    spread("LongRecipe", tail=CONTIGUOUS, contiguous_share=0.3),
    spread("LongRecipe", tail=THIRD, share=SHORT / TARGET),
    spread("LongRecipe", tail=VIEWS, views=1),
)
"""Two samplers with reach, temperature and both; ordinary positions for some samples, as
`lrk-train` has it by default; fewer tokens; self-distillation at equal FLOPs; full length."""

PAIRS = (
    *((FULL, method) for method in (POSE, LONGRECIPE, POSE + THIRD, LONGRECIPE + THIRD)),
    (POSE, "PoSE + temperature"),
    ("LongRecipe + reach + temperature", LONGRECIPE),
    (POSE, "PoSE + reach"),
    (LONGRECIPE, "LongRecipe"),
    (LONGRECIPE, "PoSE + temperature"),
    *((method + CONTIGUOUS, method) for method in (POSE, LONGRECIPE)),
    *((method + VIEWS, method) for method in (POSE, LONGRECIPE)),
)
"""What is compared, with intervals and p values: full length with the best of both samplers; what
reach, temperature, the sampler, ordinary positions and self-distillation bring."""

OTHERS = (
    Method("nothing", rope_scaling=None),
    Method("theta only"),
    Method("short training", WINDOW),
    Method("RandPos", SHORT, positions.randpos),
    Method("E2", WINDOW, positions.e2),
    Method("CREAM", WINDOW, positions.cream),
    Method("EndPrompt", SHORT, positions.endprompt),
    Method("PoSE, stock transformers", SHORT, positions.pose, patched=False),
    Method("LongRecipe, stock transformers", SHORT, positions.longrecipe, patched=False),
)
"""Controls and other samplers, with fewer seeds: they are far apart."""

DECODING = (
    Method("SelfExtend", rope_scaling=None, decoding="self_extend(window=64, group=16)"),
    Method("DCA", rope_scaling=None, decoding="dca(chunk=96, length=128)"),
    Method("STRING", rope_scaling=None, decoding="string(shift=136, window=8)"),
    Method("PoSE, SelfExtend", SHORT, positions.pose, decoding="self_extend(window=512, group=4)"),
    Method("PoSE, STRING", SHORT, positions.pose, decoding="string(shift=1088, window=64)"),
    Method("PoSE, PCD", SHORT, positions.pose, decoding="pcd"),
)
"""Methods of `lrk.decode`, which train nothing: on the model as pretrained, to take it from WINDOW
towards TARGET, and on PoSE's, to take it from TARGET to twice that. STRING's distances can halve at
most; PCD's are the model's own."""

ROPE = tuple(Method(f"{plan} only", rope_scaling=plan) for plan in ROPE_SCALINGS) + tuple(
    Method(f"PoSE, {plan}", SHORT, positions.pose, rope_scaling=plan) for plan in ROPE_SCALINGS
)
"""Each way to stretch RoPE, without training and with PoSE's. Not with reach and temperature: the
one trains positions beyond TARGET, the other is what some plans bring along."""

GRID = tuple(
    replace(spread("PoSE", reach, power), name=f"reach {reach:g}, power {power:g}")
    for reach in (1, 2, 4)
    for power in (0, 0.5, 1, 1.5)
)
"""Candidates for REACH and POWER, which are chosen by quotes alone, with a pretrained model and
seeds of their own: see `studies.proof.selection`."""
