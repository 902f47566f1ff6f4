"""What the processes of a run do as one: the error of one is the error of all.

A process that raises by itself leaves the others in their next barrier until it times out. Here
they wait for each other by gloo, and for as long as one may hash, write or merge a large model:
`ddp_timeout` is for steps. (A process that ends closes its connections, which ends the wait.)
"""

import functools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import PartialState

from lrk.command import RunError

Result = TypeVar("Result")

_PATIENCE = timedelta(days=1)


@contextmanager
def raised_by_all() -> Iterator[None]:
    """Wait for all processes at the end of the block, and raise in all what one has raised.

    Between two blocks all processes must come to the same collectives, so what raises before one
    belongs into a block of its own.

    Raises:
        ValueError: with the sentence of another process's `ValueError`.
        RunError: for another error of another process.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    try:
        sentences = of_all(None if own is None else (_sentence(own), type(own)))
    except RuntimeError as lost:
        raise (own or lost) from lost
    if own is not None:
        raise own
    for sentence, kind in filter(None, sentences):
        raise (ValueError if issubclass(kind, ValueError) else RunError)(sentence)


def wait_for_all() -> None:
    """Until every process has come here, however long one writes."""
    of_all(None)


def done_by_main(action: Callable[[], Result]) -> Result:
    """What an action returns in the main process, or raises there, in every process."""
    found: Result | None = None
    with raised_by_all():
        if PartialState().is_main_process:
            found = action()
    return of_all(found)[0]


def of_all(value: Any) -> list[Any]:
    """What each process gives, in the order of ranks; a collective without a limit to the wait."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=_patient_group(dist.group.WORLD))
    return found


@functools.cache
def _patient_group(of: Any) -> dist.ProcessGroup:
    """All processes of the group that there is now."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def place() -> str:
    """Of this process, as a sentence names it."""
    return f"process {PartialState().process_index} on {socket.gethostname()}"


def _sentence(error: Exception) -> str:
    # Bad input is the same wherever it is found.
    return str(error) if isinstance(error, ValueError) else f"{place()}: {error}"
