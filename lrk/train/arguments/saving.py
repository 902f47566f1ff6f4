"""When checkpoints are written, beside transformers' `save_strategy`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.train.arguments.argument import help_text
from lrk.train.engine import Engine

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


def check_engine(arguments: "LrkTrainingArguments", engine: Engine) -> None:
    """Refuse checkpoints without an optimizer where an engine could not read them back."""
    if not arguments.save_only_model:
        return
    if engine.shards_checkpoints:
        raise ValueError(
            "save_only_model is true with FSDP's SHARDED_STATE_DICT, which keeps the model in the "
            "format of its own checkpoints alone; leave save_only_model false, or set "
            "fsdp_config.state_dict_type (--fsdp_state_dict_type) FULL_STATE_DICT"
        )
    if arguments.load_best_model_at_end and (engine.shards_weights or engine.is_deepspeed):
        raise ValueError(
            f"save_only_model is true with load_best_model_at_end and {engine.name}, which reads "
            "the best model from whole checkpoints; leave one of them false"
        )
