"""What has been tried and what came of it, in a file: a search that was stopped goes on there.

The candidates follow from the seed and the losses before them, so the search begins anew and is
answered from the file as far as it goes.
"""

from collections.abc import Callable
from pathlib import Path

from lrk.longrope.space import Candidate
from lrk.sealed import read_sealed, write_sealed


class Trials:
    """The loss of each candidate.

    Args:
        file: made with the first trial, whole after each.

    Raises:
        ValueError: if the file is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._losses: dict[Candidate, float] = {}
        if file.is_file():
            for row in read_sealed(file)["trials"]:
                candidate = Candidate(row["critical_dimension"], tuple(row["factors"]))
                self._losses[candidate] = row["loss"]

    def __len__(self) -> int:
        return len(self._losses)

    def loss(self, candidate: Candidate, compute: Callable[[Candidate], float]) -> float:
        """As it was, or computed and kept.

        Raises:
            SaveError: if it cannot be written; what was kept before is intact.
        """
        if candidate not in self._losses:
            self._losses[candidate] = compute(candidate)
            self._write()
        return self._losses[candidate]

    def best(self) -> tuple[Candidate, float]:
        """The candidate of the lowest loss of all that were ever tried, and this loss."""
        return min(self._losses.items(), key=lambda item: item[1])

    def lowest_of(self, count: int) -> float:
        """The lowest loss of the first candidates that were tried."""
        return min(list(self._losses.values())[:count])

    def _write(self) -> None:
        rows = [
            {
                "loss": loss,
                "critical_dimension": candidate.critical,
                "factors": list(candidate.searched),
            }
            for candidate, loss in self._losses.items()
        ]
        write_sealed(self._file, {"trials": rows})
