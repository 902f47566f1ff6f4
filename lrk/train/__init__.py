"""Training: arguments, trainer, and the `lrk-train` command."""

from lrk.train.arguments import LrkTrainingArguments
from lrk.train.extension import extend
from lrk.train.parser import parse
from lrk.train.session import build_trainer, run, train
from lrk.train.trainer import LrkTrainer

__all__ = [
    "LrkTrainer",
    "LrkTrainingArguments",
    "build_trainer",
    "extend",
    "parse",
    "run",
    "train",
]
