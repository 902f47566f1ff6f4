"""How far a command is: a bar by rich in a terminal, now and then a line in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 60.0

Item = TypeVar("Item")


class Advance(Protocol):
    """Notes that so much more is done; `note` says what of, and stays until there is another."""

    def __call__(self, steps: int = 1, note: str | None = None) -> None: ...


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show on stderr how much of `total` is done, while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    # What goes to a file while the bar is shown must not go to the terminal with it.
    shared = sys.stdout.isatty()
    with Progress(*columns, console=console, redirect_stdout=shared) as bars:
        task = bars.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str | None = None) -> None:
            bars.advance(task, steps)
            if note is not None:
                bars.update(task, note=note)

        yield advance


def tracked(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """The items, counted as they are taken."""
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance()


class _Lines:
    """At most a line a minute, and none of what takes less."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._done = title, total, done
        self._note = ""
        self._said = time.monotonic()

    def __call__(self, steps: int = 1, note: str | None = None) -> None:
        self._done += steps
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            line = f"{self._title}: {self._done} of {self._total} {self._note}".rstrip()
            print(line, file=sys.stderr, flush=True)


def quiet_bars() -> None:
    """Switch off the bars of other packages where nobody sees them move: each refresh is a line."""
    if sys.stderr.isatty():
        return
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    disable_progress_bars()
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
    else:  # which takes a second to import, and reads this when it is
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
