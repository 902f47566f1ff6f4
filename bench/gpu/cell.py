"""A part is a list of cells; each is measured by itself, and what goes wrong in one stays there."""

import gc
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from bench.gpu.row import Report, Row
from bench.peers import Unavailable

FINISHED = -1


class Cell(NamedTuple):
    """What is measured, and how."""

    what: Row
    """Says what it is; with a note it stands in the place of rows that could not be made."""
    measure: Callable[[], Iterable[Row]]


def measure_all(cells: Sequence[Cell], report: Report, deadline: float, first: int = 0) -> int:
    """Measure the cells from `first` on, until `deadline` (of `time.monotonic`).

    The report says at each moment which cell is at work, for whoever has to end a hang.

    Returns:
        FINISHED; or the number of the cell with a fault that this process cannot outlive: CUDA
        answers every later call with it.
    """
    gc.freeze()  # modules need not be looked through after every cell
    try:
        for number, cell in enumerate(cells):
            if number < first:
                continue
            if time.monotonic() > deadline:
                report.add(replace(cell.what, note="left out: out of time"))
                continue
            report.begin(number, cell.what)
            fault = _measure(cell, report)
            if fault is not None and not _device_answers():
                return number
        report.end()
        return FINISHED
    finally:
        gc.unfreeze()


def _wrong(what: Row, note: str) -> Row:
    """A fault; only ours makes a run red."""
    return replace(what, ok=False if what.provider.startswith("lrk") else None, note=note)


def _measure(cell: Cell, report: Report) -> str | None:
    """What went wrong, without the exception itself, whose frames hold memory of the device."""
    try:
        for row in cell.measure():
            report.add(row)
        return None
    except Unavailable as reason:
        report.add(replace(cell.what, note=f"left out: {reason}"))
        return None
    except torch.OutOfMemoryError:
        report.add(replace(cell.what, note="out of memory"))
        return None
    # Whatever a compiler, a peer or a driver raises is what the report is for.
    except Exception as error:
        report.add(_wrong(cell.what, one_line(error)))
        return one_line(error)
    finally:
        gc.collect()
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # a function is compiled anew only so often


def _device_answers() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def one_line(error: Exception) -> str:
    """Kind and message, at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
