"""Kill a run of three stages with SIGKILL in each of them, resume it each time, compare weights.

    python -m studies.kill_and_resume_stages --runs 5

A tiny Llama is extended, then trained on replayed data, three parts documents and one part prompts
with completions (in every other run LoRA with dropout), then merged with the original. The run is
killed at a random moment of each stage, and the same command goes on with `resume_from_checkpoint:
auto`. The model of every stage must equal that of an uninterrupted run bit for bit, likewise the
losses of every step and after every stage, and no temporary may be left. Exits with 1 if anything
differs.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from studies.kill_and_resume import Study, differences, wait
from studies.tiny import WORDS, prose

FOLDERS = ("01-extension", "02-annealing", "03-merge")
STEPS = (12, 8)


@dataclass(frozen=True)
class StagedTrial:
    """Seconds after which each start was killed in its stage, and how the last one compares."""

    killed: list[float]
    faults: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill staged runs, resume them, compare.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'run':>3}  {'killed in extension, annealing, merge after':<44}  result")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        study = StagedStudy(Path(folder), arguments.seed)
        for number in range(arguments.runs):
            trial = study.trial(number)
            failures += bool(trial.faults)
            moments = ", ".join(f"{seconds:.2f} s" for seconds in trial.killed)
            result = "; ".join(trial.faults) or "equal"
            print(f"{number + 1:>3}  {moments:<44}  {result}", flush=True)
    print(f"{arguments.runs} runs, {3 * arguments.runs} kills, {failures} with a difference")
    return 1 if failures else 0


class StagedStudy:
    """Runs of three stages of one model, in a folder of their own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self._study = Study(folder, seed)
        self._references: dict[str, list[float]] = {}
        rows = [{"prompt": f"{word}? ", "completion": prose(4, i)} for i, word in enumerate(WORDS)]
        (folder / "replay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))

    def trial(self, number: int) -> StagedTrial:
        """Kill one run in each of its stages, resume it, compare it."""
        kind = "lora" if number % 2 == 0 else "full"
        durations = self._reference(kind)
        run = self.folder / f"run-{number}"
        while None in (
            killed := [
                self._kill(run, kind, stage, seconds)
                for stage, seconds in zip(FOLDERS, durations, strict=True)
            ]
        ):
            shutil.rmtree(run)
            # Faster than the reference: the machine was busier then, and would never be met.
            durations = [duration / 2 for duration in durations]
        last = self._start(run, kind)
        last.join()
        faults = [f"resuming exits with {last.exitcode}"] if last.exitcode else []
        faults += [] if faults else self._differences(run, self.folder / f"reference-{kind}")
        return StagedTrial(killed, faults)

    def _kill(self, run: Path, kind: str, stage: str, duration: float) -> float | None:
        """Resume a run, and kill it within `duration` seconds after a stage has begun.

        Returns:
            After how many seconds; None if the stage was finished by then.
        """
        process = self._start(run, kind)
        wait(process, _has_begun(run, stage))
        seconds = self._study.random.uniform(0, duration)
        time.sleep(seconds)
        process.kill()
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the run ended with {process.exitcode} before it was killed")
        states = json.loads((run / "stages.json").read_text())
        return None if states[stage]["state"] == "finished" else seconds

    def _reference(self, kind: str) -> list[float]:
        """Seconds that each stage takes, up to nine tenths of it, without an interruption."""
        if kind not in self._references:
            run = self.folder / f"reference-{kind}"
            process = self._start(run, kind)
            moments = []
            for stage in FOLDERS:
                wait(process, _has_begun(run, stage))
                moments.append(time.perf_counter())
            process.join()
            if process.exitcode:
                raise RuntimeError(f"the uninterrupted run exits with {process.exitcode}")
            moments.append(time.perf_counter())
            self._references[kind] = [0.9 * (end - begin) for begin, end in pairwise(moments)]
        return self._references[kind]

    def _start(self, run: Path, kind: str) -> Any:
        corpus = str(self.folder / "corpus" / "*.txt")
        lora = {"lora_rank": 4, "lora_dropout": 0.1} if kind == "lora" else {}
        annealing = {
            "kind": "annealing",
            "data": [corpus, str(self.folder / "replay.jsonl")],
            "data_shares": [0.75, 0.25],
            "max_steps": STEPS[1],
            "learning_rate": 1e-2,
            **lora,
        }
        content = {
            "model_name_or_path": str(self.folder / "model"),
            "data": corpus,
            "eval_data": str(self.folder / "corpus" / "0.txt"),
            "output_dir": str(run),
            "resume_from_checkpoint": "auto",
            "target_length": 256,
            "train_length": 32,
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "save_steps": 3,
            "save_total_limit": 2,
            "disable_tqdm": True,
            "bf16": False,
            "report_to": "none",
            "stages": [
                {"kind": "extension", "max_steps": STEPS[0], "learning_rate": 1e-2},
                annealing,
                {"kind": "merge"},
            ],
        }
        path = self.folder / f"{run.name}.yaml"
        path.write_text(json.dumps(content))  # which is YAML too
        return self._study.start([str(path)], run)

    def _differences(self, run: Path, reference: Path) -> list[str]:
        faults = []
        for stage in FOLDERS:
            found = differences(run / stage, reference / stage)
            faults += [f"{stage}: {fault}" for fault in found]
        ours, theirs = (
            {
                stage: (entry["state"], entry["losses"])
                for stage, entry in json.loads((folder / "stages.json").read_text()).items()
            }
            for folder in (run, reference)
        )
        faults += ["stages.json differs"] if ours != theirs else []
        return faults + [f"{path.name} is left" for path in run.glob(".partial-*")]


def _has_begun(run: Path, stage: str) -> Callable[[], bool]:
    """Whether the folder of a stage, or the temporary of it, is there."""
    return lambda: (run / stage).exists() or any(run.glob(f".partial-*-{stage}"))


if __name__ == "__main__":
    sys.exit(main())
