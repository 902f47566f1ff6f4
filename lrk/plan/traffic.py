"""What processes send to each other in a step: the collectives that a `Ledger` sees.

Of a ring of n processes each sends (n - 1) / n of the whole, whether that is gathered or reduced
and scattered, and receives as much.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from lrk.plan.ledger import Collective

PARAMETERS, KEYS = "parameters", "keys and values"
"""What is gathered, and of which the gradients are reduced; for `Collective.group` of a plan."""

GATHER, REDUCE = "all-gather", "reduce-scatter"

# Of each the index of the whole tensor among the arguments; the group comes third.
_COLLECTIVES = {"c10d::_allgather_base_": (GATHER, 0), "c10d::_reduce_scatter_base_": (REDUCE, 1)}


def traffic(func: Any, args: tuple[Any, ...]) -> tuple[Collective, int] | None:
    """What an operation of PyTorch sends to other processes, if it does."""
    name, _, _ = func.name().partition(".")
    if name not in _COLLECTIVES:
        return None
    kind, at = _COLLECTIVES[name]
    group, whole = dist.ProcessGroup.unbox(args[2]), args[at]
    nbytes = whole.numel() * whole.element_size()
    return Collective(kind, group.group_name), nbytes * (group.size() - 1) // group.size()


def check_seen(sent: Mapping[Collective, int], groups: Iterable[str]) -> None:
    """Refuse a step in which one of `groups` gathered nothing, or reduced no gradients.

    PyTorch promises the names of its operations to nobody: under others their bytes would be none.

    Raises:
        RuntimeError: naming what is missing.
    """
    for group in groups:
        for kind, _ in _COLLECTIVES.values():
            if not sent.get(Collective(kind, group)):
                raise RuntimeError(
                    f"no {kind} of {group} was seen in the step of one of several processes, whose "
                    f"operations are known as {', '.join(_COLLECTIVES)}: PyTorch "
                    f"{torch.__version__} must have others"
                )
