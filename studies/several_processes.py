"""The same run on one process and on several: losses and weights side by side.

    python -m studies.several_processes
    python -m studies.several_processes --only "cp"

Each run is 20 steps of four samples in float32, on gloo processes of one machine without a GPU
(`studies.ranks`): a tiny Llama on samples of 64 tokens spread over 256 positions, on packed
documents, and a tiny Mistral whose window is 100 positions; all parameters or LoRA. The final
folder is loaded by stock transformers. Then runs are killed and resumed, and resumed on another
number of processes. Exits with 1 if a loss differs by more than 1e-6 of it, a weight by more than
1e-5, or a resumed run by anything.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lrk.train.telemetry import read_metrics
from studies.ranks import Ranks, lrk_train
from studies.tiny import write_corpus, write_model

STEPS, SAMPLES_A_STEP = 20, 4
LOSS_LIMIT, WEIGHT_LIMIT = 1e-6, 1e-5
SHARDED = {"FSDP_VERSION": "2", "ACCELERATE_USE_FSDP": "true"}
"""As `accelerate launch` with FSDP2 sets them, whose checkpoints are sharded."""


@dataclass(frozen=True)
class Way:
    """How a run is spread, and how a step saves memory."""

    name: str
    processes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """That are computed at once."""
        return self.processes // self.options.get("sequence_parallel", 1)


FSDP = {"fsdp": "true"}
CHECKPOINTS = {"gradient_checkpointing": "true"}
WAYS = [
    *(Way("DDP", size) for size in (2, 4)),
    *(Way("FSDP2", size, FSDP) for size in (2, 4)),
    Way("FSDP2 by accelerate launch", 2, {}, SHARDED),
    Way("cp 2", 2, {"sequence_parallel": 2}),
    Way("cp 4", 4, {"sequence_parallel": 4}),
    Way("dp 2 x cp 2", 4, {"sequence_parallel": 2}),
]
TECHNIQUES: Mapping[str, Mapping[str, Any]] = {
    "activation_checkpointing": CHECKPOINTS,
    "keep_attention": {**CHECKPOINTS, "keep_attention": "true"},
    "layers_per_checkpoint 2": {**CHECKPOINTS, "layers_per_checkpoint": 2},
    "offload_activations": {**CHECKPOINTS, "offload_activations": "true"},
    "tile_tokens 16": {**CHECKPOINTS, "tile_tokens": 16},
}
DATA: Mapping[str, Mapping[str, Any]] = {
    "skipped": {"position_method": "longrecipe", "pack": "false"},
    "packed": {"position_method": "pose", "pack": "true"},
    "window": {"position_method": "longrecipe", "pack": "false"},
}
PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "LoRA": {"lora_rank": 4, "learning_rate": "1e-2"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description="One process and several, compared.")
    parser.add_argument("--only", default="", help="ways whose name contains this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder))
        failures = 0
        print(f"{'way':<42} {'data':<8} {'trained':<8} {'loss':>8} {'weights':>8}  final folder")
        for way, data, parameters in cases():
            if arguments.only in way.name:
                failures += not study.compare(way, data, parameters)
        print("", *study.summary(), "", sep="\n")
        for way in WAYS:
            if arguments.only in way.name and way.processes == 2:
                failures += not study.kill_and_resume(way)
        for way in WAYS[3:5]:
            if arguments.only in way.name:
                failures += not study.resume_on_fewer(way)
    print(f"\n{failures} of the comparisons fail")
    return 1 if failures else 0


def cases() -> Iterator[tuple[Way, str, str]]:
    """Each way with each kind of data, and each technique."""
    for way in WAYS:
        for data in DATA:
            for parameters in PARAMETERS:
                yield way, data, parameters
    for size, options in ((2, FSDP), (2, {"sequence_parallel": 2})):
        kind = "FSDP2" if options is FSDP else "cp 2"
        for technique, more in TECHNIQUES.items():
            yield Way(f"{kind}, {technique}", size, {**options, **more}), "skipped", "full"


class Study:
    """Runs on one corpus, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_model(folder / "model")
        write_model(folder / "mistral", window=100)
        write_corpus(folder / "corpus", documents=60)
        self._references: dict[tuple[str, str], Path] = {}
        self._worst: dict[str, tuple[int, float, float]] = {}

    def summary(self) -> Iterator[str]:
        """A table in Markdown: of each way its runs, and the largest differences among them."""
        yield "| engine (processes) | runs | largest difference of a loss, relative | of a weight |"
        yield "|---|---|---|---|"
        for name, (runs, loss, weight) in self._worst.items():
            yield f"| {name} | {runs} | {loss:.1e} | {weight:.1e} |"

    def compare(self, way: Way, data: str, parameters: str) -> bool:
        """Run it, and print how far it is from one process. Whether it is near enough."""
        one = self.reference(data, parameters)
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        fault = self.run(way, data, parameters, run)
        name = f"{way.name} ({way.processes})"
        if fault is not None:
            near, said = False, fault
        else:
            found = differences(run, one)
            near = found[0] <= LOSS_LIMIT and found[1] <= WEIGHT_LIMIT
            said = f"{found[0]:>8.1e} {found[1]:>8.1e}  {stock_loads(run)}"
            runs, *worst = self._worst.get(name, (0, 0.0, 0.0))
            self._worst[name] = (runs + 1, max(worst[0], found[0]), max(worst[1], found[1]))
        print(f"{name:<42} {data:<8} {parameters:<8} {said}{'' if near else '  FAILS'}", flush=True)
        return near

    def kill_and_resume(self, way: Way) -> bool:
        """SIGKILL to all processes after a checkpoint; the same command must end the same."""
        faults = []
        for number in (signal.SIGKILL, signal.SIGTERM):
            whole, run = self.folder / "whole", self.folder / "killed"
            for each in (whole, run):
                shutil.rmtree(each, ignore_errors=True)
            faults.append(self.run(way, "skipped", "full", whole))
            ranks = self.start(way, "skipped", "full", run, resume_from_checkpoint="auto")
            while not (run / "checkpoint-5").exists() and ranks.processes[0].is_alive():
                time.sleep(0.001)
            ranks.signal(number)
            killed = number == signal.SIGKILL
            codes = ranks.wait() if killed else [status for status, _ in ranks.results()]
            left = sorted(path.name for path in run.glob("checkpoint-*"))
            faults.append(self.run(way, "skipped", "full", run, resume_from_checkpoint="auto"))
            loss, weight = differences(run, whole)
            equal = loss == weight == 0 and not any(faults)
            print(
                f"{way.name} ({way.processes}), {number.name} with {left} (exit {codes[0]}), "
                f"resumed: losses differ by {loss:g}, weights by {weight:g}"
                f"{'' if equal else f'  FAILS {faults}'}",
                flush=True,
            )
            if not equal:
                return False
        return True

    def resume_on_fewer(self, way: Way) -> bool:
        """Saved by 4 processes at step 10, finished by 2."""
        one, run = self.reference("skipped", "full"), self.folder / "fewer"
        shutil.rmtree(run, ignore_errors=True)
        four = Way(way.name, 4, way.options, way.environment)
        two = Way(way.name, 2, way.options, way.environment)
        ranks = self.start(four, "skipped", "full", run)
        while not (run / "checkpoint-10").exists() and ranks.processes[0].is_alive():
            time.sleep(0.001)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
        fault = self.run(two, "skipped", "full", run, resume_from_checkpoint="auto")
        loss, weight = (float("nan"),) * 2 if fault else differences(run, one)
        near = loss <= LOSS_LIMIT and weight <= WEIGHT_LIMIT
        print(
            f"{way.name}, saved by 4 processes, finished by 2: losses differ by {loss:.1e} from "
            f"those of one process, weights by {weight:.1e}{'' if near else f'  FAILS {fault}'}",
            flush=True,
        )
        return near

    def reference(self, data: str, parameters: str) -> Path:
        """The run of one process."""
        key = (data, parameters)
        if key not in self._references:
            run = self.folder / f"one-{data}-{parameters}"
            fault = self.run(Way("one process", 1), data, parameters, run)
            if fault is not None:
                raise RuntimeError(fault)
            self._references[key] = run
        return self._references[key]

    def run(self, way: Way, data: str, parameters: str, run: Path, **more: Any) -> str | None:
        """What went wrong, or None."""
        results = self.start(way, data, parameters, run, **more).results()
        failed = [printed for status, printed in results if status]
        return failed[0].strip().splitlines()[-1] if failed else None

    def start(self, way: Way, data: str, parameters: str, run: Path, **more: Any) -> Ranks:
        """The processes of one `lrk-train`."""
        options: dict[str, Any] = {
            "model_name_or_path": self.folder / ("mistral" if data == "window" else "model"),
            "data": self.folder / "corpus" / "*.txt",
            "output_dir": run,
            "target_length": 256,
            "train_length": 64,
            "gradient_accumulation_steps": SAMPLES_A_STEP // way.samples,
            "max_steps": STEPS,
            "save_steps": 5,
            "learning_rate": "1e-3",
            "disable_tqdm": "true",
            "bf16": "false",
            "report_to": "none",
            **DATA[data],
            **PARAMETERS[parameters],
            **way.options,
            **more,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        cache = {"HF_DATASETS_CACHE": str(self.folder / "cache")}
        environment = {**cache, **way.environment}
        return Ranks(lrk_train, way.processes, words, environment=environment)


def differences(run: Path, other: Path) -> tuple[float, float]:
    """The largest of two runs: of a loss, relative, and of a weight of the final folder."""
    ours, theirs = (_losses(folder) for folder in (run, other))
    if ours.keys() != theirs.keys():
        return float("inf"), float("inf")
    loss = max(abs(ours[step] / theirs[step] - 1) for step in theirs)
    weights, others = (_weights(folder) for folder in (run, other))
    if weights.keys() != others.keys():
        return loss, float("inf")
    weight = max((weights[name] - others[name]).abs().max().item() for name in others)
    return loss, weight


def stock_loads(run: Path) -> str:
    """Whether stock transformers finds all weights in a folder, and no others."""
    from transformers import AutoModelForCausalLM

    _, info = AutoModelForCausalLM.from_pretrained(run, output_loading_info=True)
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    return f"lacks or adds {wrong[:3]}" if wrong else "loads"


def _losses(folder: Path) -> dict[int, float]:
    rows = read_metrics(folder / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    multiprocessing.set_start_method("forkserver")
    sys.exit(main())
