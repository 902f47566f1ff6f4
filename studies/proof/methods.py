"""The ways of extending a model's window that the study compares."""

import math
from dataclasses import dataclass

from lrk import positions
from lrk.positions import Sampler
from lrk.rope_scaling import ROPE_SCALINGS

WINDOW = 128
TARGET = 1024
SHORT = round(0.3 * TARGET)
"""Tokens of a sample whose positions are spread: 30 % of the target."""

REACH = 2
"""Over how many targets positions are drawn; distances near the end of a window are rare in it."""
TEMPERATURE = math.log(REACH * TARGET) / math.log(SHORT)
"""Of attention in training: see docs/proof.md."""


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
    """

    name: str
    length: int | None = None
    sampler: Sampler = positions.contiguous
    reach: int = 1
    temperature: float | None = None
    rope_scaling: str | None = "theta"
    patched: bool = True
    decoding: str | None = None


METHODS = (
    Method("nothing", rope_scaling=None),
    Method("theta only"),
    Method("short training", WINDOW),
    Method("full length", TARGET),
    Method("RandPos", SHORT, positions.randpos),
    Method("E2", WINDOW, positions.e2),
    Method("CREAM", WINDOW, positions.cream),
    Method("EndPrompt", SHORT, positions.endprompt),
    Method("PoSE", SHORT, positions.pose),
    Method("LongRecipe", SHORT, positions.longrecipe),
    Method("PoSE + reach + temperature", SHORT, positions.pose, REACH, TEMPERATURE),
    Method("PoSE, stock transformers", SHORT, positions.pose, patched=False),
    Method("LongRecipe, stock transformers", SHORT, positions.longrecipe, patched=False),
)

ABLATION = (
    Method("PoSE + reach", SHORT, positions.pose, REACH),
    Method("PoSE + temperature", SHORT, positions.pose, 1, math.log(TARGET) / math.log(SHORT)),
    Method("LongRecipe + reach + temperature", SHORT, positions.longrecipe, REACH, TEMPERATURE),
)
"""What of the best short method does it: one part at a time taken out or replaced."""

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
