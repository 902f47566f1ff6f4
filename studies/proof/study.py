"""The runs of the study: one a method and seed, each in a process of its own."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import LlamaForCausalLM

from lrk.atomic import atomic_folder, write_text
from lrk.eval.decoding import decoding_block
from lrk.rope_factors import read_rope_factors
from studies.proof.factors import FACTORS
from studies.proof.methods import TARGET, WINDOW, Method
from studies.proof.model import (
    extended,
    measured,
    pretrained,
    samples_a_step,
    steps_of,
    version,
)
from studies.proof.task import TASKS
from studies.runs import on_cores

LENGTHS = (WINDOW, 2 * WINDOW, 4 * WINDOW, TARGET, 2 * TARGET)
SAMPLES = 32
DEPTH_BINS = 8


def read(file: Path) -> list[dict]:
    """The results so far."""
    return json.loads(file.read_text()) if file.exists() else []


def write(rows: list[dict], file: Path) -> None:
    write_text(file, json.dumps(rows, indent=1) + "\n")


def base_model(output_dir: Path, seed: int) -> Path:
    """The pretrained model's folder; made unless an earlier start has left it there."""
    folder = output_dir / f"base-{seed}-{version()}" / "model"
    if not folder.exists():
        model = pretrained(seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
    return folder


def missing(
    rows: list[dict], methods: Sequence[Method], seeds: Sequence[int], base: Path
) -> list[tuple[Method, int]]:
    """The runs that are not among the results yet."""
    done = {(row["method"], row["seed"]) for row in rows if row["base"] == base.parent.name}
    runs = ((method, seed) for seed in seeds for method in methods)
    return [(method, seed) for method, seed in runs if (method.name, seed) not in done]


def results(
    base: Path, runs: list[tuple[Method, int]], processes: int, tasks: Sequence[str] = tuple(TASKS)
) -> Iterator[dict]:
    """One row a run, in the order in which they end."""
    return on_cores(result, [(base, method, seed, tasks) for method, seed in runs], processes)


def result(base: Path, method: Method, seed: int, tasks: Sequence[str] = tuple(TASKS)) -> dict:
    """One run: by task, how many of the tokens asked for are right, by length, and by depth."""
    begin = time.process_time()
    factors = (
        read_rope_factors(base.parent / FACTORS) if method.rope_scaling == "longrope" else None
    )
    model = extended(LlamaForCausalLM.from_pretrained(base), method, seed, factors)
    seconds = time.process_time() - begin
    accuracy: dict[str, dict[str, float]] = {task: {} for task in tasks}
    by_depth: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    for task in tasks:
        for length in LENGTHS:
            with decoding_block(method.decoding, model):
                hits, depths = measured(model, task, length, seed, SAMPLES)
            accuracy[task][str(length)] = round(hits.mean().item(), 5)
            bins = (depths * DEPTH_BINS).long().clamp(max=DEPTH_BINS - 1)
            by_depth[task][str(length)] = [
                round(hits[bins == n].mean().item(), 4) for n in range(DEPTH_BINS)
            ]
    return {
        "base": base.parent.name,
        "method": method.name,
        "seed": seed,
        "accuracy": accuracy,
        "by_depth": by_depth,
        "training_tokens": _tokens(method),
        "training_flop": _flop(model, method),
        "training_cpu_seconds": round(seconds, 1),
    }


def _tokens(method: Method) -> int:
    if method.length is None:
        return 0
    return steps_of(method) * samples_a_step(method) * method.length


def _flop(model: LlamaForCausalLM, method: Method) -> float:
    """6 a weight and token; 6 a layer, channel and pair of tokens, half of which are masked.

    A second view has the forward pass alone, a third of it.
    """
    if method.length is None:
        return 0.0
    config = model.config
    embeddings = config.vocab_size * config.hidden_size
    pairs = config.num_hidden_layers * config.hidden_size * method.length
    passes = 8.0 if method.views else 6.0
    return _tokens(method) * passes * (model.num_parameters() - embeddings + pairs)
