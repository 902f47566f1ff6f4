"""The results of a study: one JSON file, from which tables and pictures are made.

It is also what a start goes on from: what is in the file is not done again, whatever became of the
folders of the models. So the machine may be another one, if the file is carried there.

    settings      the numbers of the study and the kind of device, the same for all of the file
    rehearsal     whether the figures mean anything (they do not in a rehearsal)
    environments  versions, commit, processor and GPU of each start
    calibrations  seconds of each step, by kind of sample
    trainings     one a model and seed
    measurements  one a call of lrk-eval: model, seed, seconds, and its cells

A record names its environment by number. Times are wall time in seconds, lengths and positions
tokens, losses nats a token, depths per cent, scores 0 or 1.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrk.atomic import write_text
from lrk.env import environment

Record = dict[str, Any]


class Results:
    """The file, read at the start and written whole after each piece.

    Args:
        path: it need not exist.
        settings: of this start.
        rehearsal: whether the figures mean nothing.
        commit: of the sources, where git cannot say it.

    Raises:
        ValueError: if the file is of a study with other settings, or no results.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        rehearsal: bool = False,
        commit: str | None = None,
    ) -> None:
        self.path = path
        self._commit = commit
        self._environment: int | None = None
        if path.exists():
            self.data = read(path)
            _check_same(path, self.data["settings"], settings)
            return
        self.data = {
            "settings": dict(settings),
            "rehearsal": rehearsal,
            "environments": [],
            "calibrations": {},
            "trainings": [],
            "measurements": [],
        }

    def step_seconds(self, kind: str) -> float | None:
        """What a step on a kind of sample takes; None if it was not measured yet."""
        found = self.data["calibrations"].get(kind)
        return None if found is None else steady_seconds(found["step_seconds"])

    def training(self, model: str, seed: int) -> Record | None:
        """The record of a training that is finished."""
        return next(of(self.data["trainings"], model, seed), None)

    def missing(self, model: str, seed: int, lengths: Sequence[int]) -> list[int]:
        """Those of `lengths` that a model was not read at."""
        done = {cell["length"] for cell in cells(self.data, model, seed)}
        return [length for length in lengths if length not in done]

    def add_calibration(self, kind: str, record: Record) -> None:
        self.data["calibrations"][kind] = self._placed(record)
        self._write()

    def add_training(self, record: Record) -> None:
        """A model that was lost with its machine and trained again replaces its record."""
        old = self.training(record["model"], record["seed"])
        if old is not None:
            self.data["trainings"].remove(old)
        times = 1 if old is None else old["times"] + 1
        self.data["trainings"].append(self._placed(record) | {"times": times})
        self._write()

    def add_measurement(self, record: Record) -> None:
        self.data["measurements"].append(self._placed(record))
        self._write()

    def _placed(self, record: Record) -> Record:
        if self._environment is None:
            found = environment()
            self.data["environments"].append(found | {"commit": self._commit or found["commit"]})
            self._environment = len(self.data["environments"]) - 1
        return record | {"environment": self._environment}

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.data, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> Record:
    """What a file of results holds.

    Raises:
        ValueError: in one sentence, if it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = found["settings"]
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} does not hold results of this study") from error
    assert isinstance(settings, dict)
    return found


def merged(files: Sequence[Path]) -> Record:
    """The results of several files, such as a seed each, as one.

    Raises:
        ValueError: if their settings differ, or two hold the same model, seed and length.
    """
    first, *others = [read(path) for path in files]
    for path, other in zip(files[1:], others, strict=True):
        _check_same(path, other["settings"], first["settings"])
        shift = len(first["environments"])
        first["environments"] += other["environments"]
        for name in ("trainings", "measurements"):
            first[name] += [
                record | {"environment": record["environment"] + shift} for record in other[name]
            ]
        first["rehearsal"] |= other["rehearsal"]
    seen = set()
    for record in first["measurements"]:
        for length in {cell["length"] for cell in record["cells"]}:
            key = (record["model"], record["seed"], length)
            if key in seen:
                raise ValueError(
                    f"{' and '.join(map(str, files))} both hold {key[0]!r} with seed {key[1]} at "
                    f"{length} tokens"
                )
            seen.add(key)
    return first


def of(records: Sequence[Record], model: str, seed: int | None = None) -> Iterator[Record]:
    """Records of a model; of one seed, if one is given."""
    for record in records:
        if record["model"] == model and seed in (None, record["seed"]):
            yield record


def cells(data: Record, model: str, seed: int | None = None) -> Iterator[Record]:
    """Cells of a model, each with its seed."""
    for record in of(data["measurements"], model, seed):
        for cell in record["cells"]:
            yield cell | {"seed": record["seed"]}


def steady_seconds(steps: Sequence[float]) -> float:
    """Of one step: the median without the first, which also compiles and allocates."""
    return statistics.median(steps[1:] or steps)


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    different = [name for name in new if old.get(name) != new[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"{str(path)!r} holds results with {name} {old.get(name)!r}, and now it is "
            f"{new[name]!r}: choose another --out, or the same {name}"
        )
