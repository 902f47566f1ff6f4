"""The work, piece by piece: what is next, how long it may take, and what is left."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lrk.atomic import remove
from studies.real_model import training
from studies.real_model.budget import Budget, OutOfTimeError
from studies.real_model.measurement import LOSSES, PASSKEY, TASKS, measure
from studies.real_model.models import MODELS, Decoded, Model, decoded
from studies.real_model.pretrained import RESCALED, UNTOUCHED, write_models
from studies.real_model.report import markdown
from studies.real_model.results import Record, Results, steady_seconds
from studies.real_model.scale import Scale
from studies.real_model.texts import write_texts


@dataclass(frozen=True)
class Study:
    """What a start works on.

    Attributes:
        folder: of models and texts, which later starts need not find again.
        scale: the numbers.
        seeds: of training, and of what is asked; models that train nothing are asked with each.
        device: "cpu" or "cuda".
        decoding: whether the methods of `lrk.decode` are measured too, last.
        results: the file that says what is done.
        models: of `MODELS`, in the order of the work.
        failed: models of this start that could not be made or read.
    """

    folder: Path
    scale: Scale
    seeds: Sequence[int]
    device: str
    decoding: bool
    results: Results
    models: Sequence[Model] = MODELS
    failed: list[str] = field(default_factory=list)

    def run(self, budget: Budget) -> None:
        """Do what is missing: seed by seed, each model to its end before the next.

        A model is measured as soon as it is trained, at all lengths: the machine may not be there
        at the next start, and then it would have to be trained again.

        Raises:
            OutOfTimeError: before the first piece that does not fit into the budget.
        """
        for model, seed in self._models():
            lengths = self.results.missing(model.name, seed, model.lengths(self.scale))
            if lengths:
                with self._others_go_on(f"{model.name}, seed {seed}"):
                    self._measure(model, seed, lengths, self._weights(model, seed, budget), budget)
        for method in self._decoded():
            if self.results.missing(method.name, self.seeds[0], [self.scale.target]):
                with self._others_go_on(method.name):
                    self._measure_decoded(method, budget)

    @contextmanager
    def _others_go_on(self, name: str) -> Iterator[None]:
        """What a command or the device says no to is left to do, and the next model is taken."""
        try:
            yield
        except RuntimeError as error:  # CommandError, and out of memory
            _say(f"{name} failed: {' '.join(str(error).split())[:300]}")
            self.failed.append(name)

    def left(self) -> list[str]:
        """What is missing, in the order of the work."""
        found = []
        for model, seed in self._models():
            lengths = self.results.missing(model.name, seed, model.lengths(self.scale))
            if lengths:
                found.append(f"{model.name}, seed {seed}: {', '.join(f'{n:,}' for n in lengths)}")
        for method in self._decoded():
            if self.results.missing(method.name, self.seeds[0], [self.scale.target]):
                found.append(f"{method.name}: {self.scale.target:,}")
        return found

    def _models(self) -> Iterator[tuple[Model, int]]:
        for seed in self.seeds:
            for model in self.models:
                yield model, seed

    def _decoded(self) -> list[Decoded]:
        return decoded(self.scale) if self.decoding else []

    def _folder(self, model: Model, seed: int) -> Path:
        return self.folder / "models" / f"{model.name}-{seed}"

    def _weights(self, model: Model, seed: int, budget: Budget) -> Path:
        """The folder of a model, which is trained if it is not there."""
        if model.sample is None:
            return self.folder / (RESCALED if model.rescaled else UNTOUCHED)
        folder = self._folder(model, seed)
        if training.is_trained(folder):
            if self.results.training(model.name, seed) is None:
                self._note(model, seed, folder, 0.0)  # A start was killed just before.
            return folder
        step_seconds = self._step_seconds(model, budget)
        steps = training.steps_for(model.share * self.scale.seconds, step_seconds)
        piece = f"training {model.name}, seed {seed}"
        budget.require(piece, steps * step_seconds + self._overhead())
        _say(f"{piece}: {steps} steps of {step_seconds:.2f} s")
        begin = time.perf_counter()
        # Cells in it would be of a model that is lost.
        remove(self._cells(model.name, seed))
        arguments = (self.folder, folder, model, self.scale, seed, self.device)
        training.train(*arguments, steps, step_seconds)
        self._note(model, seed, folder, time.perf_counter() - begin)
        return folder

    def _note(self, model: Model, seed: int, folder: Path, seconds: float) -> None:
        record: Record = {"model": model.name, "seed": seed, "share": model.share}
        record |= training.telemetry(folder, model, self.scale)
        # Of what killed starts did the steps alone are known.
        record["seconds"] = max(seconds, sum(record["step_seconds"]))
        self.results.add_training(record)

    def _step_seconds(self, model: Model, budget: Budget) -> float:
        """Measured once for each kind of sample, whatever its positions."""
        assert model.sample is not None
        known = self.results.step_seconds(model.sample)
        if known is not None:
            return known
        calibrations = self.results.data["calibrations"].values()
        longest = max((record["seconds"] for record in calibrations), default=0.0)
        piece = f"{training.CALIBRATION_STEPS} steps of {model.name} to know their time"
        budget.require(piece, longest)
        _say(piece)
        begin = time.perf_counter()
        record = training.calibrate(self.folder, model, self.scale, self.device)
        record["seconds"] = time.perf_counter() - begin
        self.results.add_calibration(model.sample, record)
        return steady_seconds(record["step_seconds"])

    def _measure(
        self, model: Model, seed: int, lengths: Sequence[int], weights: Path, budget: Budget
    ) -> None:
        """Read at as many lengths at a time as fit into the budget, short ones first."""
        while lengths:
            fitting = [*lengths]
            while len(fitting) > 1 and not budget.fits(self._expected(fitting)):
                fitting.pop()
            piece = f"reading {model.name}, seed {seed}, at {fitting[0]:,} tokens"
            budget.require(piece, self._expected(fitting))
            self._read(model.name, weights, seed, fitting, TASKS, None)
            lengths = lengths[len(fitting) :]

    def _measure_decoded(self, method: Decoded, budget: Budget) -> None:
        seed, target = self.seeds[0], self.scale.target
        weights = self._weights(method.model, seed, budget)
        budget.require(f"reading {method.name}", self._expected([target]))
        tasks = (PASSKEY, LOSSES) if method.losses else (PASSKEY,)
        self._read(method.name, weights, seed, [target], tasks, method.decoding)

    def _read(
        self,
        name: str,
        weights: Path,
        seed: int,
        lengths: Sequence[int],
        tasks: Sequence[str],
        decoding: str | None,
    ) -> None:
        _say(f"reading {name}, seed {seed}, at {', '.join(f'{n:,}' for n in lengths)} tokens")
        begin = time.perf_counter()
        cells = self._cells(name, seed)
        found = measure(
            self.folder, weights, cells, self.scale, seed, self.device, lengths, tasks, decoding
        )
        record: Record = {"model": name, "seed": seed, "cells": found}
        self.results.add_measurement(record | {"seconds": time.perf_counter() - begin})

    def _cells(self, name: str, seed: int) -> Path:
        return self.folder / "cells" / f"{name}-{seed}"

    def _overhead(self) -> float:
        """Of a training beside its steps: loading, saving."""
        records = self.results.data["trainings"]
        return max((r["seconds"] - sum(r["step_seconds"]) for r in records), default=0.0)

    def _expected(self, lengths: Sequence[int]) -> float:
        """Seconds of reading at some lengths, by the slowest of the same length so far.

        What was not read yet is taken to grow with the square of the length.
        """
        seconds: dict[int, float] = {}
        overhead = 0.0
        for record in self.results.data["measurements"]:
            of_record: dict[int, float] = {}
            for cell in record["cells"]:
                length = cell["length"]
                of_record[length] = of_record.get(length, 0.0) + cell["seconds"]
            overhead = max(overhead, record["seconds"] - sum(of_record.values()))
            for length, taken in of_record.items():
                seconds[length] = max(seconds.get(length, 0.0), taken)
        total = overhead
        for length in lengths:
            known = max((n for n in seconds if n <= length), default=None)
            if known is not None:
                total += seconds[known] * (length / known) ** 2
        return total


def start(study: Study, weights: Path | None, budget: Budget) -> list[str]:
    """Do what is missing, or as much of it as fits into the budget; print what there is then.

    Args:
        weights: the GGUF file of SmolLM2; None takes the package's.

    Returns:
        What is still missing.

    Raises:
        ValueError: in one sentence, before any work, for a target that the texts do not reach.
    """
    if study.left():
        study.folder.mkdir(parents=True, exist_ok=True)
        tokenizer = write_models(study.folder, study.scale, weights)
        write_texts(study.folder, study.scale, tokenizer)
        try:
            study.run(budget)
        except OutOfTimeError as reason:
            _say(f"stopped, since {reason}")
    if study.results.data["measurements"]:
        print(markdown(study.results.data))
    left = study.left()
    _say(f"left to do: {'; '.join(left) or 'nothing'}")
    _say(f"results: {study.results.path}")
    return left


def _say(text: str) -> None:
    print(f"real_model: {text}", flush=True)
