"""What the processes of a run do as one: the error of one is the error of all.

A process that raises by itself leaves the others in their next barrier until it times out.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from lrk.command import RunError

Result = TypeVar("Result")


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
    sentences = gather_object([None if own is None else (_sentence(own), type(own))])
    if own is not None:
        raise own
    for sentence, kind in filter(None, sentences):
        raise (ValueError if issubclass(kind, ValueError) else RunError)(sentence)


def done_by_main(action: Callable[[], Result]) -> Result:
    """What an action returns in the main process, or raises there, in every process."""
    found: list[Result | None] = [None]
    with raised_by_all():
        if PartialState().is_main_process:
            found = [action()]
    return broadcast_object_list(found)[0]


def place() -> str:
    """Of this process, as a sentence names it."""
    return f"process {PartialState().process_index} on {socket.gethostname()}"


def _sentence(error: Exception) -> str:
    # Bad input is the same wherever it is found.
    return str(error) if isinstance(error, ValueError) else f"{place()}: {error}"
