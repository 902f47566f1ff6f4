"""Arguments of a training run: those of transformers, and what the recipe adds.

Each subject has a file: its arguments with their help, how their defaults follow from others, and
what is refused. `training` puts the subjects together; it is imported where it is used, for
transformers' own arguments bring peft.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrk.train.arguments.kernels import ATTENTION, KERNELS
    from lrk.train.arguments.losses import IMPACTFUL, LONGCE, PLAIN
    from lrk.train.arguments.model import DTYPES
    from lrk.train.arguments.samples import TRAIN_SHARE
    from lrk.train.arguments.training import LrkTrainingArguments, without_secrets

_HOMES = {
    "ATTENTION": "kernels",
    "DTYPES": "model",
    "IMPACTFUL": "losses",
    "KERNELS": "kernels",
    "LONGCE": "losses",
    "PLAIN": "losses",
    "TRAIN_SHARE": "samples",
    "LrkTrainingArguments": "training",
    "without_secrets": "training",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
