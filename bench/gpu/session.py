"""The parts of a run one after the other, each a process of its own with its own time limit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from random import randrange
from typing import Any

import torch

from bench.gpu.card import Ceilings, ceilings
from bench.gpu.cell import FINISHED, Cell, measure_all
from bench.gpu.results import PARTS, results_in
from bench.gpu.row import BOTH, Report, Row, as_json, from_json, read
from bench.gpu.sizes import REAL, REHEARSAL, Sizes
from bench.gpu.stand_in import stand_in
from bench.gpu.table import table
from bench.gpu.ways import WAYS
from lrk.atomic import write_text
from lrk.env import environment

# Of the time. `compile` needs no device, and `card` runs beside it.
_SHARES = dict(zip(PARTS, (75, 75, 140, 300, 60, 300), strict=True))
_GRACE = 45.0  # seconds in which a part may end what it has begun
# Seconds in which a cell has to say something: on slow cards a long step takes minutes.
_SILENCE = {"compile": float("inf"), "step": 400.0}
_SILENCE_OF_OTHERS = 120.0
_TIMED = ("kernels", "tiles", "step")
_OUT_OF_TIME = "killed: out of time"
_GO_ON = 3  # exit status of a part that lost its device and wants a new process


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    Attributes:
        out: folder of the results.
        parts: some of PARTS.
        budget: seconds for all of them.
        rehearse: on a CPU, in tiny sizes.
        seed: of the inputs, None for another one every time.
        commit: of the sources, where git cannot say it.

    Raises:
        ValueError: for what no run can be.
    """

    out: Path
    parts: tuple[str, ...]
    budget: float
    rehearse: bool
    seed: int | None
    commit: str | None

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise ValueError(f"--budget is {self.budget:g}: must be a positive number of seconds")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed is {self.seed}: must be at least 0 and below 2**63")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out is {self.out}: must be a folder, or a name for a new one")
        if not self.rehearse and not torch.cuda.is_available():
            raise ValueError("no GPU is here: --rehearse runs the same on a CPU, in tiny sizes")

    @property
    def sizes(self) -> Sizes:
        return REHEARSAL if self.rehearse else REAL


# A part, in a process of its own.


def run_part(options: Options, part: str, first: int, until: float) -> int:
    """Measure the cells of a part from `first` on until a time, and write them to `PART.json`.

    Args:
        until: of `time.monotonic`, which is the same in all processes of a machine.
    """
    with stand_in() if options.rehearse else nullcontext():
        path = options.out / f"{part}.json"
        rows = read(path)[1] if first else []
        seed = randrange(2**31) if options.seed is None else options.seed
        torch.manual_seed(seed)
        most = _ceilings(options.out)
        report = Report(path, _header(options, part, seed), rows, _finish(part, most))
        report.write()
        module = import_module(f"bench.gpu.{part}")
        wrong = _wrong_in(options.out) if part in _TIMED else []
        cells = [_unless_wrong(cell, wrong) for cell in module.cells(options.sizes)]
        reached = measure_all(cells, report, until, first)
    if reached == FINISHED:
        return 0
    sys.stdout.flush()
    os._exit(_GO_ON)  # without the device no destructor can be relied on


def _header(options: Options, part: str, seed: int) -> dict[str, Any]:
    found = environment()
    properties = torch.cuda.get_device_properties()
    return {
        "part": part,
        "card": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "memory_mib": properties.total_memory // 2**20,
        "rehearsal": options.rehearse,
        "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "seed": seed,
        **found,
        "commit": options.commit or found["commit"],
    }


def _ceilings(out: Path) -> Ceilings:
    path = out / "card.json"
    return ceilings(read(path)[1]) if path.exists() else Ceilings()


def _finish(part: str, most: Ceilings) -> Callable[[Row], Row]:
    """What is done to each row: shares of the ceilings, except in the part that measures them."""
    return (lambda row: row) if part in ("card", "step") else most.share


def _wrong_in(out: Path) -> list[Row]:
    """What the part `correct` found wrong, if it was run."""
    path = out / "correct.json"
    return [row for row in read(path)[1] if row.ok is False] if path.exists() else []


def _unless_wrong(cell: Cell, wrong: Sequence[Row]) -> Cell:
    """The cell, or one that says that nothing wrong is timed."""
    if not any(_concerns(row, cell.what) for row in wrong):
        return cell
    note = "not timed: part correct found it wrong"
    return Cell(cell.what, lambda: iter([replace(cell.what, note=note)]))


def _concerns(wrong: Row, timed: Row) -> bool:
    """Whether what is wrong is part of what is to be timed. A way to launch is not."""
    if wrong.variant in WAYS:
        return False
    if not timed.provider.startswith("lrk") or wrong.dtype != timed.dtype:
        return False
    if timed.op in ("step", "kernel"):
        return wrong.shape.get("D", 128) == 128
    dims = wrong.shape.get("D"), timed.shape.get("D")
    return wrong.op == timed.op and (None in dims or dims[0] == dims[1])


# The session, which never touches the device.


def run_session(options: Options) -> int:
    """Run the parts and print the table; returns 1 if something is wrong, else 0."""
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.budget
    weights = {part: _SHARES[part] for part in PARTS if part in options.parts}
    running: list[_Process] = []
    while weights:
        part = next(iter(weights))
        process = _Process(options, part, _share(end, weights, part))
        del weights[part]
        running.append(process)
        if part == "compile" and "card" in weights:
            continue  # which waits for no compiler
        while running:
            running.pop().wait()
    return _summarise(options)


def _share(end: float, weights: dict[str, int], part: str) -> float:
    """Seconds of a part: what earlier parts left over is divided among the rest."""
    return max(end - time.monotonic(), 1.0) * weights[part] / sum(weights.values())


class _Process:
    """A part at work. A crash or a hang costs the cell that did it, and no other part."""

    def __init__(self, options: Options, part: str, seconds: float) -> None:
        self._options, self._part = options, part
        self._path = options.out / f"{part}.json"
        self._path.unlink(missing_ok=True)
        self._end = time.monotonic() + seconds
        print(f"\n== {part}, at most {seconds:.0f} s", flush=True)
        self._started = self._start(0)

    def _start(self, first: int) -> subprocess.Popen[bytes]:
        options = self._options
        words = ["--out", str(options.out), "--part", self._part, "--first", str(first)]
        words += ["--until", str(self._end)]
        words += ["--rehearse"] if options.rehearse else []
        words += [] if options.seed is None else ["--seed", str(options.seed)]
        words += [] if options.commit is None else ["--commit", options.commit]
        return subprocess.Popen(
            [sys.executable, "-m", "bench.gpu", *words],
            env=_environment(interpreted=options.rehearse and self._part != "compile"),
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it ends or has to; what it could not outlive is left out and the rest gone on
        with."""
        while True:
            fault = self._fault()
            if fault is None:
                return
            at_work_on = self._note(fault, is_ours=fault != _OUT_OF_TIME)
            if at_work_on is None or time.monotonic() > self._end:
                return
            self._started = self._start(at_work_on + 1)

    def _fault(self) -> str | None:
        """Wait for the end, and say what was wrong with it."""
        longest = _SILENCE.get(self._part, _SILENCE_OF_OTHERS)
        while (status := self._started.poll()) is None:
            if time.monotonic() > self._end + _GRACE:
                self._kill()
                return _OUT_OF_TIME
            if self._seconds_of_silence() > longest:
                self._kill()
                return f"killed: silent for {longest:.0f} s"
            time.sleep(0.1)
        if status == 0:
            return None
        self._kill()  # what it started may be there still
        return "the device was lost" if status == _GO_ON else f"ended with status {status}"

    def _kill(self) -> None:
        """The part and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._started.pid, signal.SIGKILL)
        self._started.wait()

    def _seconds_of_silence(self) -> float:
        """Since the file was last written; a part that still imports has none."""
        if not self._path.exists():
            return 0.0
        return time.time() - self._path.stat().st_mtime

    def _note(self, fault: str, is_ours: bool) -> int | None:
        """Say in the file which cell ended the process; returns its number, None before the first.

        A peer's fault is not ours, and neither is what only took its time.
        """
        content: dict[str, Any] = {"part": self._part, "rows": []}
        if self._path.exists():
            content = json.loads(self._path.read_text(encoding="utf-8"))
        at_work_on = content.get("at_work_on")
        what = Row(self._part, BOTH, {}, "", "lrk")
        if at_work_on is not None:
            what = from_json(at_work_on["what"])
        is_ours = is_ours and what.provider.startswith("lrk")
        row = replace(what, ok=False if is_ours else None, note=fault)
        content["rows"].append(as_json(row))
        write_text(self._path, json.dumps(content, indent=1) + "\n")
        print(row.line(), flush=True)
        return None if at_work_on is None else at_work_on["number"]


def _environment(interpreted: bool) -> dict[str, str]:
    """Of a part. Triton interprets or not as its kernels are decorated, in the whole process."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return variables | ({"TRITON_INTERPRET": "1"} if interpreted else {})


def _summarise(options: Options) -> int:
    """Print and write the table."""
    results = results_in(options.out)
    text = table(results)
    write_text(options.out / "table.txt", text + "\n")
    print(f"\n{text}")
    return int(any(row.ok is False for rows in results.rows.values() for row in rows))
