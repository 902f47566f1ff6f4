"""Types and ranges of the arguments, those of transformers too, which checks few of its own."""

import math
from dataclasses import fields
from types import NoneType
from typing import TYPE_CHECKING, get_type_hints

from lrk.field_types import check_types, kinds

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

_SCALARS = {bool, int, float, str, NoneType}

_MOST = 2**31 - 1
_SEED = 2**32 - 1

# The least and the largest. Beyond them PyTorch raises when the run is under way, memory is asked
# for that no machine has, or nothing is done in silence.
_RANGES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, _MOST)),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps"), (1, _MOST)),
    **dict.fromkeys(("dataset_num_proc", "dataloader_prefetch_factor"), (1, _MOST)),
    **dict.fromkeys(("save_total_limit",), (1, _MOST)),
    **dict.fromkeys(("dataloader_num_workers", "eval_samples"), (0, _MOST)),
    **dict.fromkeys(("max_steps", "num_train_epochs"), (-1, _MOST)),
    **dict.fromkeys(("seed", "data_seed"), (0, _SEED)),
}
_POSITIVE = (
    *("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"),
    *("logging_steps", "eval_steps", "eval_delay", "save_steps"),
)


def check_given(arguments: "LrkTrainingArguments") -> None:
    """Refuse another type than the annotated one, and numbers that are none.

    What transformers rewrites into objects of its own keeps its freedom.

    Raises:
        ValueError: in one sentence, with the name of the argument.
    """
    hints = get_type_hints(type(arguments))
    own = arguments.own_names()
    names = [
        item.name
        for item in fields(arguments)
        if getattr(arguments, item.name) is not item.default
        and (item.name in own or set(kinds(hints[item.name])) <= _SCALARS)
    ]
    check_types(arguments, names)
    for name in names:
        value = getattr(arguments, name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name} is {value}; it must be finite")


def check_ranges(arguments: "LrkTrainingArguments") -> None:
    """Refuse counts and sizes below what means something."""
    for name, (least, most) in _RANGES.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} is {value}; it must be at least {least} and at most {most}")
    for name in _POSITIVE:
        value = getattr(arguments, name)
        if value is not None and value < 0:
            raise ValueError(f"{name} is {value}; it must be 0 or positive")
    if arguments.save_strategy == "steps" and arguments.save_steps == 0:
        raise ValueError(
            f"save_steps is {arguments.save_steps:g} with save_strategy 'steps'; it must be "
            "positive"
        )
    if arguments.max_steps <= 0 and arguments.num_train_epochs <= 0:
        raise ValueError(
            f"max_steps is {arguments.max_steps} and num_train_epochs "
            f"{arguments.num_train_epochs}; one of them must be positive"
        )
