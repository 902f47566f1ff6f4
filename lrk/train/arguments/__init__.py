"""Arguments of a training run: those of transformers, and what the recipe adds.

Each subject has a file: its arguments with their help, how their defaults follow from others, and
what is refused. `training` puts the subjects together.
"""

from lrk.train.arguments.kernels import ATTENTION, KERNELS
from lrk.train.arguments.losses import IMPACTFUL, LONGCE, PLAIN
from lrk.train.arguments.model import DTYPES
from lrk.train.arguments.samples import TRAIN_SHARE
from lrk.train.arguments.training import LrkTrainingArguments, without_secrets

__all__ = [
    "ATTENTION",
    "DTYPES",
    "IMPACTFUL",
    "KERNELS",
    "LONGCE",
    "PLAIN",
    "TRAIN_SHARE",
    "LrkTrainingArguments",
    "without_secrets",
]
