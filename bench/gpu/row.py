"""One schema for everything that is measured, and the file that each part of a run writes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from lrk.atomic import write_text

FORWARD, BACKWARD, BOTH = "forward", "backward", "both"
_DIRECTION, _PASS = "direction", "pass"  # the field, and its name in JSON, a keyword of Python


@dataclass(frozen=True)
class Row:
    """What was found of one operation in one shape by one provider; None is what was not measured.

    Attributes:
        op: `copy`, `product`, `rope`, `attention`, `decoding`, `linear_cross_entropy`, `step`,
            `kernel`.
        direction: FORWARD, BACKWARD or BOTH (forward, then backward); `pass` in JSON.
        shape: its sizes by their usual letters: B, S, H, Hk, D, N, V, W, documents, window.
        dtype: of the inputs.
        provider: `lrk`, or whose implementation it is.
        variant: what is special about it: a mask, a tile, a memory technique.
        milliseconds: median over the repetitions, of work on the device; of a step, the fastest.
        spread: milliseconds between the quartiles.
        host_microseconds: of the host, to queue a call. Not part of `milliseconds`.
        tflop_per_s: useful FLOP, as docs/gpu.md counts them, over the median.
        gb_per_s: bytes that any implementation must move, over the median.
        share: of what the same card reached in the part `card`; of a `kernel`, of the whole step.
        peak_mib: most memory during the call over what was there before.
        planned_mib: what lrk-plan says to `peak_mib`.
        mfu: `tflop_per_s` over the peak that the vendor publishes.
        error: largest absolute difference from float64, of all outputs and gradients.
        plain_error: that of plain PyTorch in the same dtype.
        ok: whether it is right by the rule of lrk.testing; None if that was not asked.
        note: why something is missing or wrong.
    """

    op: str
    direction: str
    shape: dict[str, int]
    dtype: str
    provider: str
    variant: str = ""
    milliseconds: float | None = None
    spread: float | None = None
    host_microseconds: float | None = None
    tflop_per_s: float | None = None
    gb_per_s: float | None = None
    share: float | None = None
    peak_mib: float | None = None
    planned_mib: float | None = None
    mfu: float | None = None
    error: float | None = None
    plain_error: float | None = None
    ok: bool | None = None
    note: str = ""

    @property
    def what(self) -> str:
        """All that tells it from other rows, in one line."""
        sizes = written(self.shape)
        words = (self.provider, self.op, self.direction, sizes, self.dtype, self.variant)
        return " ".join(word for word in words if word)

    @property
    def over_plain(self) -> float | None:
        """Its error over plain PyTorch's, in 16 bits: in 32 either is small by luck."""
        if self.dtype == "float32" or not self.error or not self.plain_error:
            return None
        return self.error / self.plain_error

    def line(self) -> str:
        """What is known of it, in one line."""
        known = [
            f"{each.name} {getattr(self, each.name):.4g}"
            for each in fields(self)
            if isinstance(getattr(self, each.name), float)
        ]
        words = [self.what, *known]
        if self.ok is not None:
            words.append("right" if self.ok else "WRONG")
        return "  ".join([*words, self.note] if self.note else words)


def written(shape: dict[str, int]) -> str:
    """Its sizes behind their letters."""
    return " ".join(f"{name}{size}" for name, size in shape.items())


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Report:
    """The rows of one part. Its file is whole after each of them."""

    path: Path
    header: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    finish: Callable[[Row], Row] = lambda row: row
    """Completes each row."""

    def add(self, row: Row) -> None:
        row = self.finish(row)
        self.rows.append(row)
        print(row.line(), flush=True)
        self.write()

    def begin(self, number: int, what: Row) -> None:
        """Say which cell is at work."""
        self.header["at_work_on"] = {"number": number, "what": as_json(what)}
        self.write()

    def end(self) -> None:
        """Say that none is."""
        self.header.pop("at_work_on", None)
        self.write()

    def write(self) -> None:
        content = self.header | {"rows": [as_json(row) for row in self.rows]}
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def as_json(row: Row) -> dict[str, Any]:
    """The row without what was not measured."""
    known = {
        each.name: value
        for each in fields(row)
        if (value := getattr(row, each.name)) != each.default
    }
    return {_PASS if name == _DIRECTION else name: value for name, value in known.items()}


def from_json(values: dict[str, Any]) -> Row:
    return Row(**{_DIRECTION if name == _PASS else name: each for name, each in values.items()})


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Header and rows of the file of a part.

    Raises:
        ValueError: if the file is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [from_json(values) for values in content.pop("rows")]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of results of bench.gpu: {error!r}") from error
    return content, rows
