"""What a dry run predicts for. Nothing of the run itself depends on it."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.plan.gpus import GPUS
from lrk.train.arguments.argument import help_text
from lrk.train.nearest import require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments


@dataclass
class PredictionArguments:
    """The GPU of `--dry_run`, and its price."""

    gpu: str | None = field(
        default=None,
        metadata=help_text(
            f"with dry_run: predict memory and time for {', '.join(GPUS)} (default: this machine's)"
        ),
    )
    dollars_per_hour: float | None = field(
        default=None, metadata=help_text("with dry_run: price of one GPU, for that of the run")
    )


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse a GPU that is not known, and a price that is none."""
    if arguments.gpu is not None:
        require_one_of("gpu", arguments.gpu, GPUS)
    dollars = arguments.dollars_per_hour
    if dollars is not None and not 0 < dollars < math.inf:
        raise ValueError(f"dollars_per_hour is {dollars}; it must be positive")
