"""lrk's commands, called in this process."""

import gc
from collections.abc import Callable, Sequence

import torch


class CommandError(RuntimeError):
    """A command of lrk ended with a status; it has said why."""


def call(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> None:
    """Run `main` of a command; what it leaves on a GPU is freed.

    Raises:
        CommandError: if it does not return 0.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    status = command(words)
    if torch.cuda.is_available():
        gc.collect()  # A trainer and its model hold each other.
        torch.cuda.empty_cache()
    if status:
        raise CommandError(f"{command.__module__} ended with status {status}")
