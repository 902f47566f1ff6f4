"""The results of the studies as the rules read them: rows, and comparisons of two rows.

`python -m studies.evidence` writes them into `evidence.json` beside this file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from lrk.field_types import check_types

MADE_BY = "python -m studies.evidence"
NATS = ("text",)
"""Tasks whose figures are losses in nats, of which less is better; of others they are per cent."""

_PACKAGED = resources.files("lrk.train.auto_recipe") / "evidence.json"


@dataclass(frozen=True)
class Row:
    """What one method reaches on one task.

    Attributes:
        name: how the file calls it.
        study: `proof` (random tokens) or `real text`.
        method: as the studies name it.
        length: of the texts that are read, in tokens.
        times_window: `length` over the window of the model before it was extended.
        mean: over runs, in per cent or nats.
        half_interval: of its 95 % confidence interval.
        training_tokens, training_flop: of a run.
    """

    name: str
    study: str
    task: str
    method: str
    length: int
    times_window: float
    mean: float
    half_interval: float
    runs: int
    training_tokens: int
    training_flop: float

    def __post_init__(self) -> None:
        check_types(self)

    def __str__(self) -> str:
        if self.task in NATS:
            return f"{self.mean:.3f} ± {self.half_interval:.3f} nats"
        return f"{self.mean:.1f} ± {self.half_interval:.1f} %"


@dataclass(frozen=True)
class Comparison:
    """The mean of one method minus that of another, on one task at one length.

    Attributes:
        better, worse: the methods; `difference` is of their means in this order, in the unit of
            the rows, and may have either sign.
        low, high: ends of its 95 % confidence interval.
        p_corrected: `p` corrected for all comparisons of its study.
    """

    name: str
    better: str
    worse: str
    task: str
    length: int
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def gain(self) -> float:
        """By how much the first method is better, whatever the unit."""
        return -self.difference if self.task in NATS else self.difference

    def turned(self) -> "Comparison":
        """With the methods changed over."""
        return replace(
            self,
            better=self.worse,
            worse=self.better,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
        )

    def __str__(self) -> str:
        unit, digits = ("nats", 3) if self.task in NATS else ("points", 1)
        return (
            f"{self.difference:+.{digits}f} {unit} ({self.low:+.{digits}f} to "
            f"{self.high:+.{digits}f}, corrected p {self.p_corrected:.3g})"
        )


@dataclass(frozen=True)
class Evidence:
    """All rows and comparisons.

    Attributes:
        made_by: what wrote the file.
        reach: targets that positions are drawn over by ` + reach`.
        temperature_power: ` + temperature` is `log(reach * Lt) / log(Ls)` to this power.
    """

    made_by: str
    reach: float
    temperature_power: float
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]

    def tasks(self, study: str) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.task for row in self.rows if row.study == study))

    def named(self, name: str) -> Row | Comparison:
        """The row or comparison that the file calls so."""
        parts: list[Row | Comparison] = [*self.rows, *self.comparisons]
        return next(each for each in parts if each.name == name)

    def find(self, study: str, task: str, method: str, times_window: float) -> Row | None:
        """The row of a method, or None if it was not measured."""
        for row in self.rows:
            if (row.study, row.task, row.method) == (study, task, method) and math.isclose(
                row.times_window, times_window
            ):
                return row
        return None

    def row(self, study: str, task: str, method: str, times_window: float) -> Row:
        """As `find`.

        Raises:
            ValueError: if there is none: the results lack what a rule rests on.
        """
        found = self.find(study, task, method, times_window)
        if found is None:
            raise ValueError(
                f"the evidence has no row of {method!r} for task {task!r} of study {study!r} at "
                f"{times_window:g} times the window, on which a rule rests: run `{MADE_BY}`"
            )
        return found

    def compared(
        self, study: str, task: str, first: str, second: str, times_window: float
    ) -> Comparison | None:
        """`first` minus `second`, or None if they were not compared."""
        row = self.find(study, task, first, times_window)
        for each in self.comparisons if row is not None else ():
            assert row is not None
            if (each.task, each.length) != (task, row.length):
                continue
            if (each.better, each.worse) == (first, second):
                return each
            if (each.better, each.worse) == (second, first):
                return each.turned()
        return None


def read_evidence(path: Path | None = None) -> Evidence:
    """The evidence of a file, or that of the package.

    Raises:
        ValueError: in one sentence, for a file that is absent or has not that form.
    """
    source = _PACKAGED if path is None else path
    what = f"evidence {str(source)!r}"
    if not source.is_file():
        raise ValueError(f"{what} does not exist; `{MADE_BY}` writes it")
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        rows = _parts(Row, content["rows"])
        comparisons = _parts(Comparison, content["comparisons"])
        settings = content["settings"]
        reach, power = float(settings["reach"]), float(settings["temperature_power"])
        evidence = Evidence(str(content["made_by"]), reach, power, rows, comparisons)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(str(error).split())
        problem = f"has no {said}" if isinstance(error, KeyError) else said
        raise ValueError(f"{what} is damaged: {problem}; `{MADE_BY}` writes it anew") from error
    keys = [(row.study, row.task, row.method, row.times_window) for row in rows]
    if twice := [row.name for row, key in zip(rows, keys, strict=True) if keys.count(key) > 1]:
        raise ValueError(f"{what} has rows of one thing: {' and '.join(twice)}")
    return evidence


Part = TypeVar("Part", Row, Comparison)


def _parts(kind: type[Part], content: Mapping[str, Mapping[str, Any]]) -> tuple[Part, ...]:
    names = [field.name for field in fields(kind) if field.name != "name"]
    parts = []
    for name, values in content.items():
        if missing := [each for each in names if each not in values]:
            raise ValueError(f"{name!r} has no {missing[0]}")
        parts.append(kind(name=name, **{each: values[each] for each in names}))
    return tuple(parts)
