"""Kill training runs with SIGKILL at random moments, resume them, and compare every weight.

    python -m studies.kill_and_resume --kills 20

A tiny Llama is trained with gradient accumulation, two data workers, evaluations, checkpoints every
3 steps of which two are kept, and, in every other trial, LoRA with dropout. Trials 5 to 8 of every
eight read their data as a stream, with one worker. Each trial is killed once: while the data are
prepared, while it trains, while a checkpoint is written, or while the final model is. Then the same
command goes on with `resume_from_checkpoint: auto`. The final weights must equal those of an
uninterrupted run bit for bit, the losses in `metrics.jsonl` likewise, one row a step, and no
temporary may be left. Exits with 1 if anything differs.
"""

import argparse
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.tiny import write_corpus, write_model

STEPS = 20
DATA = ("prepared", "stream")
MOMENTS = ("preparing", "training", "saving", "last save")


@dataclass(frozen=True)
class Trial:
    """What a kill left and how the resumed run compares; `faults` is empty where all is equal."""

    moment: str
    seconds: float
    found: str
    faults: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill training runs, resume them, compare.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'kill':>4}  {'moment':<10} {'after':>7}  {'found in the folder':<34}  result")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), arguments.seed)
        for number in range(arguments.kills):
            trial = study.trial(number, MOMENTS[number % len(MOMENTS)])
            failures += bool(trial.faults)
            print(
                f"{number + 1:>4}  {trial.moment:<10} {trial.seconds:>6.2f}s  {trial.found:<34}  "
                f"{'; '.join(trial.faults) or 'equal'}",
                flush=True,
            )
    print(f"{arguments.kills} kills, {failures} with a difference")
    return 1 if failures else 0


class Study:
    """Runs of one model on one corpus, in a folder of their own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self._context: Any = multiprocessing.get_context("forkserver")
        self.random = random.Random(seed)
        self._references: dict[str, tuple[float, float]] = {}
        write_model(folder / "model")
        write_corpus(folder / "corpus", documents=60)
        # Imports take longer than a run: they are done once, in the process that the runs fork off.
        multiprocessing.set_forkserver_preload(["lrk.train.command", "torch.distributed"])
        warm_up = self._context.Process(target=int)
        warm_up.start()
        warm_up.join()

    def trial(self, number: int, moment: str) -> Trial:
        """Kill one run, resume it, compare it."""
        kind = f"{'lora' if number % 2 == 0 else 'full'}-{DATA[number // len(MOMENTS) % 2]}"
        run = self.folder / f"run-{number}"
        while (seconds := self._kill(run, kind, moment)) is None:
            shutil.rmtree(run)
        found = _listing(run)
        resumed = self._start(run, kind)
        resumed.join()
        faults = [f"resuming exits with {resumed.exitcode}"] if resumed.exitcode else []
        faults += [] if faults else differences(run, self.folder / f"reference-{kind}")
        return Trial(moment, seconds, found, faults)

    def _kill(self, run: Path, kind: str, moment: str) -> float | None:
        """Start a run and kill it; after how many seconds, or None if it had already finished."""
        ready, finished = self._reference(kind)
        process = self._start(run, kind)
        begin = time.perf_counter()
        if moment == "preparing":
            time.sleep(self.random.uniform(0, ready))
        elif moment == "training":
            wait(process, (run / "config.yaml").exists)
            time.sleep(self.random.uniform(0, finished - ready))
        else:
            name = ".partial-*-model"
            if moment == "saving":
                name = f".partial-checkpoint-{3 * self.random.randint(1, STEPS // 3)}"
            wait(process, lambda: any(run.glob(name)))
            time.sleep(self.random.uniform(0, 0.02))
        process.kill()
        process.join()
        return time.perf_counter() - begin if process.exitcode == -signal.SIGKILL else None

    def _reference(self, kind: str) -> tuple[float, float]:
        """Seconds until an uninterrupted run has prepared its data, and until it has finished."""
        if kind not in self._references:
            run = self.folder / f"reference-{kind}"
            begin = time.perf_counter()
            process = self._start(run, kind)
            wait(process, (run / "config.yaml").exists)
            ready = time.perf_counter() - begin
            process.join()
            if process.exitcode:
                said = self._log(run).read_text(encoding="utf-8", errors="replace")[-4000:]
                raise RuntimeError(
                    f"the uninterrupted run exits with {process.exitcode}; it said: {said}"
                )
            self._references[kind] = ready, time.perf_counter() - begin
        return self._references[kind]

    def _start(self, run: Path, kind: str) -> Any:
        lora, streams = kind.startswith("lora"), kind.endswith("stream")
        options: dict[str, Any] = {
            "model_name_or_path": self.folder / "model",
            "data": self.folder / "corpus" / "*.txt",
            "eval_data": self.folder / "corpus" / "0.txt",
            "output_dir": run,
            "resume_from_checkpoint": "auto",
            "target_length": 256,
            "train_length": 32,
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "dataloader_num_workers": 1 if streams else 2,
            "max_steps": STEPS,
            "save_steps": 3,
            "save_total_limit": 2,
            "eval_strategy": "steps",
            "eval_steps": 5,
            "learning_rate": "1e-2",
            "lora_rank": 4 if lora else 0,
            "lora_dropout": 0.1 if lora else 0,
            "disable_tqdm": "true",
            "bf16": "false",
            "report_to": "none",
            "streaming": streams,
        }
        if streams:
            options["shuffle_buffer"] = 8
        return self.start([f"--{name}={value}" for name, value in options.items()], run)

    def start(self, words: list[str], run: Path) -> Any:
        """One `lrk-train` in a process of its own."""
        cache = self.folder / f"cache-{run.name}"
        process = self._context.Process(target=train, args=(words, cache, self._log(run)))
        process.start()
        return process

    def _log(self, run: Path) -> Path:
        return self.folder / f"{run.name}.log"


def train(words: list[str], cache: Path, log: Path) -> None:
    """One `lrk-train` in a process of its own, whose data are not in the cache of another."""
    import datasets
    import torch

    from lrk.train.command import main

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the data workers, as usual on Linux
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    sys.stdout = sys.stderr = open(log, "a", encoding="utf-8")  # noqa: SIM115
    sys.exit(main(words))


def wait(process: Any, condition: Callable[[], bool]) -> None:
    """Until something is so, or the process has ended."""
    while process.is_alive() and not condition():
        time.sleep(0.0005)


def _listing(run: Path) -> str:
    names = [path.name for path in run.glob("*") if "checkpoint" in path.name]
    names += [".partial-model"] if any(run.glob(".partial-*-model")) else []
    short = sorted(name.replace("checkpoint-", "") for name in names)
    return ", ".join(short) or ("no checkpoint" if run.exists() else "nothing")


def differences(run: Path, reference: Path) -> list[str]:
    """What a resumed run and an uninterrupted one do not have in common."""
    from safetensors.torch import load_file

    from lrk.train.telemetry import read_metrics

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, reference))
    faults = [f"{name} differs" for name in theirs if not ours[name].equal(theirs[name])]
    logged = [
        [
            (row["step"], row["loss"])
            for row in read_metrics(folder / "metrics.jsonl")
            if "loss" in row
        ]
        for folder in (run, reference)
    ]
    faults += ["metrics.jsonl differs"] if logged[0] != logged[1] else []
    faults += [f"{path.name} is left" for path in run.glob(".partial-*")]
    return faults


if __name__ == "__main__":
    sys.exit(main())
