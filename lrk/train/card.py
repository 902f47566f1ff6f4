"""The GPU that is planned for: one by its name, or that of this machine."""

from typing import NamedTuple

import torch

from lrk.plan.gpus import GPUS
from lrk.train.nearest import require_one_of

_GIB = 2**30


class Card(NamedTuple):
    """A GPU of `lrk.plan.gpus`, and its memory in GiB."""

    name: str
    gib: float


def card_of(name: str | None) -> Card:
    """The card of that name, or without one that of this machine.

    Raises:
        ValueError: for a name that is not known, and without one if there is no card, or none that
            the planner knows.
    """
    known = ", ".join(GPUS)
    if name is not None:
        require_one_of("gpu", name, GPUS)
        return Card(name, GPUS[name].gib)
    if not torch.cuda.is_available():
        raise ValueError(f"gpu is missing, and this machine has none; --gpu must be one of {known}")
    found = torch.cuda.get_device_properties(0)
    gib = found.total_memory / _GIB
    said = found.name.lower().replace(" ", "")
    names = [each for each in GPUS if each.partition("-")[0] in said]
    if not names:
        raise ValueError(
            f"gpu is missing, and this machine's {found.name} is not known; --gpu must name the "
            f"nearest of {known}"
        )
    # There are A100 of 40 and of 80 GB.
    return Card(min(names, key=lambda each: abs(GPUS[each].gib - gib)), gib)
