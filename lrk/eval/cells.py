"""Cells: the smallest pieces of an evaluation, each with its settings and its file of results.

A finished cell is not repeated. So that a folder never mixes two evaluations, a cell carries all
that its figures depend on, and other settings over old results are an error that names them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrk.atomic import remove, remove_temporaries
from lrk.eval.arguments import EvalArguments
from lrk.eval.tasks import GRID
from lrk.sealed import read_sealed, write_sealed

FOLDER = "cells"
RESULTS_FILES = ("results.json", "results.md", "*.png", "config.yaml")

LM_EVAL = "lm_eval"


@dataclass(frozen=True)
class Cell:
    """One task at one length, the grid also at one depth; or one task of lm-eval.

    Attributes:
        task: a name of `ALL_TASKS`, or `LM_EVAL`.
        length: tokens; None for lm-eval.
        depth: per cent; None but for the grid.
        lm_eval_task: None but for lm-eval.
    """

    task: str
    length: int | None = None
    depth: float | None = None
    lm_eval_task: str | None = None

    @property
    def name(self) -> str:
        """What its file is called, without the ending."""
        parts = [self.task, self.length, self.lm_eval_task]
        if self.depth is not None:
            parts.append(f"depth{self.depth:g}")
        return "-".join(str(part).replace("/", "_") for part in parts if part is not None)

    def __str__(self) -> str:
        at = "" if self.length is None else f" at {self.length:,} tokens"
        deep = "" if self.depth is None else f", depth {self.depth:g} %"
        return (self.lm_eval_task or self.task) + at + deep


def cells_of(arguments: EvalArguments) -> list[Cell]:
    """All cells in the order they run: short lengths first."""
    found = []
    for length in sorted(arguments.lengths):
        for task in arguments.tasks:
            if task == GRID:
                found += [Cell(task, length, depth) for depth in arguments.depths]
            else:
                found.append(Cell(task, length))
    return found + [Cell(LM_EVAL, lm_eval_task=task) for task in arguments.lm_eval_tasks]


class ResultFolder:
    """The files of an evaluation.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What `write` was given for a cell; None if it is not finished."""
        file = self._file(cell)
        return read_sealed(file) if file.is_file() else None

    def read_all(self) -> Iterator[dict[str, Any]]:
        """The results of all finished cells, in the order of their names."""
        # What a killed process left half written begins with a dot.
        for file in sorted((self.path / FOLDER).glob("[!.]*.json")):
            yield read_sealed(file)

    def write(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Save a finished cell, whole or not at all."""
        (self.path / FOLDER).mkdir(parents=True, exist_ok=True)
        write_sealed(self._file(cell), result)

    def prepare(self, cells: Sequence[Cell] | None, overwrite: bool) -> None:
        """Make the folder; delete what was left half written.

        Args:
            cells: those that nobody else writes; None where nobody else writes at all.
            overwrite: delete also all results.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        names = [None] if cells is None else [self._file(cell).name for cell in cells]
        for name in names:
            remove_temporaries(self.path / FOLDER, name)
        if overwrite:
            for pattern in RESULTS_FILES:
                for file in self.path.glob(pattern):
                    remove(file)
            for file in (self.path / FOLDER).glob("*.json"):
                remove(file)

    def check(self, settings: Mapping[Cell, Mapping[str, Any]], common: Sequence[str]) -> None:
        """Raise `ValueError` if the folder holds results of another evaluation.

        Args:
            settings: of each cell that is asked for.
            common: names of settings in which all cells of the folder must agree, also those that
                are not asked for. Settings that are not known yet are left out of `settings`.
        """
        for cell, wanted in settings.items():
            found = self.read(cell)
            if found is not None:
                self._compare(str(cell), found["settings"], wanted, [*wanted])
        wanted = next(iter(settings.values()))
        for found in self.read_all():
            self._compare(found["title"], found["settings"], wanted, common)

    def _file(self, cell: Cell) -> Path:
        return self.path / FOLDER / f"{cell.name}.json"

    def _compare(
        self,
        title: str,
        old: Mapping[str, Any],
        new: Mapping[str, Any],
        names: Sequence[str],
    ) -> None:
        different = [
            f"{name} was {old.get(name)!r} and is {new[name]!r}"
            for name in names
            if name in new and old.get(name) != new[name]
        ]
        if different:
            raise ValueError(
                f"output_dir {str(self.path)!r} holds {title} with other settings "
                f"({'; '.join(different)}): choose another folder or overwrite_output_dir"
            )
