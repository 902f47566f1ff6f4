"""The folder that a run leaves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.row import Row, read

PARTS = ("compile", "card", "correct", "kernels", "tiles", "step")


@dataclass(frozen=True)
class Results:
    """Headers and rows of the parts that were run, in their order."""

    headers: dict[str, dict[str, Any]]
    rows: dict[str, list[Row]]

    @property
    def heading(self) -> str:
        """Card, versions and commit in a line; all of them, if parts were run on several."""
        line = "; ".join(dict.fromkeys(_heading(header) for header in self.headers.values()))
        return f"{line}; A REHEARSAL, ITS FIGURES MEAN NOTHING" if self.rehearsed else line

    @property
    def rehearsed(self) -> bool:
        return any(header.get("rehearsal") for header in self.headers.values())


def _heading(header: dict[str, Any]) -> str:
    packages = header.get("packages", {})
    names = ("torch", "triton", "transformers")
    versions = ", ".join(f"{name} {packages.get(name)}" for name in names)
    commit = str(header.get("commit"))[:12]
    return f"{header.get('card')}, {versions}, commit {commit}, {str(header.get('when'))[:10]}"


def results_in(folder: Path) -> Results:
    """What a run left in a folder.

    Raises:
        ValueError: if a file there is not one of a run.
    """
    headers, rows = {}, {}
    for part in PARTS:
        path = folder / f"{part}.json"
        if path.exists():
            headers[part], rows[part] = read(path)
    return Results(headers, rows)
