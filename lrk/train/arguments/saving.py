"""When checkpoints are written, beside transformers' `save_strategy`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.train.arguments.argument import help_text

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments


@dataclass
class SavingArguments:
    """How much work may be lost."""

    save_minutes: float = field(
        default=0.0,
        metadata=help_text(
            "write a checkpoint when the last one is so many minutes old, beside those of "
            "save_strategy; 0 writes none"
        ),
    )


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse a time that is past."""
    if arguments.save_minutes < 0:
        raise ValueError(f"save_minutes is {arguments.save_minutes}; it must be 0 or positive")
