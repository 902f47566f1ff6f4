"""Attention sinks: a learned score beside those of the keys, which takes a share and has no value.

A model that was trained with them computes something else without (gpt-oss).
"""

from typing import Any

from lrk.hf.architectures import architecture_of
from lrk.hf.backends import LRK
from lrk.hf.stock_forward import names_read


def has_sinks(config: Any) -> bool:
    """Whether the attention of a supported model reads sinks.

    Raises:
        ValueError: for a model type that is not supported.
    """
    return "sinks" in names_read(architecture_of(config, "the config is").attention)


def check_sinks(config: Any, argument: str, attention: str) -> None:
    """Refuse the attention of another with sinks: none that `lrk.patch` knows by name sums them.

    Args:
        argument: that names it, for the message.
        attention: as `lrk.patch` names it.

    Raises:
        ValueError: in one sentence.
    """
    if attention != LRK and has_sinks(config):
        raise ValueError(
            f"{argument} is {attention!r}, which has no sinks, and model type "
            f"{config.model_type!r} has: take {LRK!r}"
        )
