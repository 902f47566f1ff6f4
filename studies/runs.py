"""Runs of a study, each in a process and on a core of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch
from rich.progress import track
from transformers.utils.logging import disable_progress_bar


def on_cores(
    run: Callable[..., dict], arguments: Sequence[tuple[Any, ...]], processes: int
) -> Iterator[dict]:
    """What `run` returns for each tuple of arguments, in the order in which the runs end."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_on_one_core)
    with pool:
        started = [pool.submit(run, *each) for each in arguments]
        for one in track(as_completed(started), total=len(started), description="runs"):
            yield one.result()


def _on_one_core() -> None:
    torch.set_num_threads(1)  # The order of sums, and so the result, depends on their number.
    disable_progress_bar()
