"""The runs of the study: one a method and seed, each in a process of its own."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.progress import track
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from lrk.atomic import atomic_folder, write_text
from lrk.eval.decoding import decoding_block
from lrk.rope_factors import read_rope_factors
from studies.proof.factors import FACTORS
from studies.proof.methods import TARGET, WINDOW, Method
from studies.proof.model import EXTENSION_STEPS, TOKENS_PER_STEP, extended, measured, pretrained

LENGTHS = (WINDOW, 2 * WINDOW, 4 * WINDOW, TARGET, 2 * TARGET)
SAMPLES = 48
DEPTH_BINS = 8


def read(file: Path) -> list[dict]:
    """The results so far."""
    return json.loads(file.read_text()) if file.exists() else []


def write(rows: list[dict], file: Path) -> None:
    write_text(file, json.dumps(rows, indent=1) + "\n")


def base_model(folder: Path) -> Path:
    """The pretrained model's folder; made unless an earlier start has left it there."""
    if not folder.exists():
        model = pretrained(seed=0)
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
    return folder


def missing(rows: list[dict], methods: Sequence[Method], seeds: int) -> list[tuple[Method, int]]:
    """The runs that are not among the results yet."""
    done = {(row["method"], row["seed"]) for row in rows}
    runs = ((method, seed) for seed in range(seeds) for method in methods)
    return [(method, seed) for method, seed in runs if (method.name, seed) not in done]


def results(base: Path, runs: list[tuple[Method, int]], processes: int) -> Iterator[dict]:
    """One row a run, in the order in which they end. Each has a process and a core of its own."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_on_one_core)
    with pool:
        started = [pool.submit(result, base, method, seed) for method, seed in runs]
        for run in track(as_completed(started), total=len(started), description="runs"):
            yield run.result()


def _on_one_core() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()


def result(base: Path, method: Method, seed: int) -> dict:
    """One run: how many quoted tokens are right, by length, and by depth at each."""
    begin = time.process_time()
    factors = (
        read_rope_factors(base.parent / FACTORS) if method.rope_scaling == "longrope" else None
    )
    model = extended(LlamaForCausalLM.from_pretrained(base), method, seed, factors)
    seconds = time.process_time() - begin
    accuracy, by_depth = {}, {}
    for length in LENGTHS:
        with decoding_block(method.decoding, model):
            hits, depths = measured(model, length, seed, SAMPLES)
        accuracy[str(length)] = hits.mean().item()
        bins = (depths * DEPTH_BINS).long().clamp(max=DEPTH_BINS - 1)
        by_depth[str(length)] = [hits[bins == n].mean().item() for n in range(DEPTH_BINS)]
    return {
        "method": method.name,
        "seed": seed,
        "accuracy": accuracy,
        "by_depth": by_depth,
        "training_tokens": _tokens(method),
        "training_flop": _flop(model, method),
        "training_cpu_seconds": seconds,
    }


def _tokens(method: Method) -> int:
    if method.length is None:
        return 0
    return EXTENSION_STEPS * (TOKENS_PER_STEP // method.length) * method.length


def _flop(model: LlamaForCausalLM, method: Method) -> float:
    """6 a weight and token; 6 a layer, channel and pair of tokens, half of which are masked."""
    if method.length is None:
        return 0.0
    config = model.config
    embeddings = config.vocab_size * config.hidden_size
    pairs = config.num_hidden_layers * config.hidden_size * method.length
    return _tokens(method) * 6.0 * (model.num_parameters() - embeddings + pairs)
