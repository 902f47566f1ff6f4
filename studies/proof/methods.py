"""The ways of extending a model's window that the study compares."""

from dataclasses import dataclass

from lrk import positions
from lrk.positions import Sampler

WINDOW = 128
TARGET = 1024
SHORT = round(0.3 * TARGET)
"""Tokens of a sample whose positions are spread: 30 % of the target."""


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        name: as the tables say it.
        length: tokens of a training sample; None trains nothing.
        sampler: their positions, over TARGET.
        scales_theta: whether the RoPE base is raised for TARGET.
        patched: whether lrk runs the model, or transformers as it comes.
    """

    name: str
    length: int | None = None
    sampler: Sampler = positions.contiguous
    scales_theta: bool = True
    patched: bool = True


METHODS = (
    Method("nothing", scales_theta=False),
    Method("theta only"),
    Method("short training", WINDOW),
    Method("full length", TARGET),
    Method("RandPos", SHORT, positions.randpos),
    Method("PoSE", SHORT, positions.pose),
    Method("CREAM", WINDOW, positions.cream),
    Method("E2", WINDOW, positions.e2),
    Method("EndPrompt", SHORT, positions.endprompt),
    Method("LongRecipe", SHORT, positions.longrecipe),
    Method("PoSE in stock transformers", SHORT, positions.pose, patched=False),
    Method("LongRecipe in stock transformers", SHORT, positions.longrecipe, patched=False),
)
