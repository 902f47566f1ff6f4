"""A teacher beside the labels: the model itself in other positions, or as it was before."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.hf.distillation import NONE, ORIGINAL, TEACHERS, VIEWS
from lrk.hf.sdpa import IMPLEMENTATION as SDPA
from lrk.train.arguments.argument import help_text
from lrk.train.engine import Engine
from lrk.train.nearest import require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments


@dataclass
class DistillationArguments:
    """Whose predictions are learnt beside the labels, and how much they count."""

    distill: str = field(
        default=NONE,
        metadata=help_text(
            "teacher of every sample: the model itself in ordinary positions (views), as it was "
            "before the run on short contexts (original), or none"
        ),
    )
    distill_weight: float = field(
        default=1.0, metadata=help_text("of the divergence from the teacher beside the loss")
    )
    distill_length: int | None = field(
        default=None,
        metadata=help_text(
            "distill original: tokens of each sample's short context (default: a quarter of "
            "train_length, at most the model's window)"
        ),
    )


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse an unknown teacher, what belongs to another one, and what none can be had with."""
    distill, weight, length = (
        *(arguments.distill, arguments.distill_weight),
        arguments.distill_length,
    )
    require_one_of("distill", distill, TEACHERS)
    if distill == NONE and arguments.is_given("distill_weight"):
        raise ValueError(f"distill_weight is {weight} with distill 'none'; it is for a teacher")
    if length is not None and distill != ORIGINAL:
        raise ValueError(
            f"distill_length is {length} with distill {distill!r}; it belongs to {ORIGINAL!r}"
        )
    if not 0 < weight < math.inf:
        raise ValueError(f"distill_weight is {weight}; it must be positive")
    if distill == NONE:
        return
    if not arguments.kernels["cross_entropy"]:
        raise ValueError(
            f"distill is {distill!r} with kernels.cross_entropy false; the loss of transformers "
            "knows no teacher, so keep kernels.cross_entropy"
        )
    if distill == VIEWS:
        _check_views(arguments)
    else:
        _check_original(arguments)


def _check_views(arguments: "LrkTrainingArguments") -> None:
    for name, one in (("position_method", "contiguous"), ("contiguous_share", 1)):
        if getattr(arguments, name) == one:
            raise ValueError(
                f"distill is 'views' with {name} {one!r}; every sample is in ordinary positions "
                "then, so that its two views are the same"
            )


def _check_original(arguments: "LrkTrainingArguments") -> None:
    length = arguments.distill_length
    if length is not None and not 1 <= length <= arguments.train_length:
        raise ValueError(
            f"distill_length is {length}; it must be at least 1 and at most train_length "
            f"{arguments.train_length}, of whose tokens it is"
        )
    attention = arguments.kernels["attention"]
    if attention in (False, SDPA):
        raise ValueError(
            f"distill is 'original' with kernels.attention {attention!r}, which knows no "
            "documents, as which short contexts are added: leave kernels.attention true"
        )
    if arguments.attention_temperature != 1:
        raise ValueError(
            "distill is 'original' with attention_temperature "
            f"{arguments.attention_temperature}; the model would be compared with its teacher at a "
            "temperature that it has in training alone: use 'views', or leave attention_temperature"
        )
    if arguments.load_in_4bit:
        raise ValueError(
            "distill is 'original' with load_in_4bit true; of weights of 4 bits no second, frozen "
            "model is made: use 'views', or leave load_in_4bit false"
        )


def check_engine(arguments: "LrkTrainingArguments", engine: Engine) -> None:
    """Refuse teachers that an engine would take apart, or that were never tried on it."""
    distill = arguments.distill
    if distill == NONE:
        return
    if engine.is_deepspeed:
        raise ValueError(
            f"distill is {distill!r} with {engine.name}, on which no teacher was ever run; use "
            "DDP, or FSDP2 with 'views'"
        )
    if distill == ORIGINAL and engine.shards_weights:
        raise ValueError(
            f"distill is 'original' with {engine.name}; the teacher is a second model, which "
            "nothing shards: use 'views', or DDP"
        )
