"""Training: arguments, trainer, and the `lrk-train` command.

Its names are imported when they are used: parts of it, such as `lrk.train.nearest`, serve commands
that need no trainer, and transformers' brings peft.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrk.command import quiet_bitsandbytes

if TYPE_CHECKING:
    from lrk.train.arguments import LrkTrainingArguments
    from lrk.train.extension import extend
    from lrk.train.parser import parse
    from lrk.train.session import build_trainer, run, train
    from lrk.train.trainer import LrkTrainer

_HOMES = {
    "LrkTrainer": "trainer",
    "LrkTrainingArguments": "arguments",
    "build_trainer": "session",
    "extend": "extension",
    "parse": "parser",
    "run": "session",
    "train": "session",
}

__all__ = [
    "LrkTrainer",
    "LrkTrainingArguments",
    "build_trainer",
    "extend",
    "parse",
    "run",
    "train",
]

quiet_bitsandbytes()  # before transformers' trainer is imported


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
