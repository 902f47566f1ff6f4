"""LongRoPE2's search for the study's model: factors by the loss of its quotes at TARGET tokens."""

import json
import time
from pathlib import Path

import torch
from torch import Generator
from transformers import LlamaForCausalLM

import lrk
from lrk.atomic import write_text
from lrk.longrope import Evolution, NeedleSample, search_factors
from lrk.longrope.search import losses_by_plan
from lrk.longrope.trials import Trials
from studies.proof.methods import TARGET
from studies.proof.task import quotes

FACTORS = "rope_factors.json"
TRIALS = "rope_trials.json"
EVOLUTION = Evolution(population=32, iterations=20, seed=0)
"""Half of the paper's population, for half as long."""
SAMPLES, HELD_OUT = 6, 24


def find_factors(base: Path) -> Path:
    """The file of factors beside the pretrained model; made unless an earlier start has left it."""
    file = base.parent / FACTORS
    if not file.exists():
        begin = time.process_time()
        model = lrk.patch(LlamaForCausalLM.from_pretrained(base).eval())
        generator = torch.Generator().manual_seed(2_000_000)
        samples, held_out = _samples(SAMPLES, generator), _samples(HELD_OUT, generator)
        trials = Trials(base.parent / TRIALS)
        found = search_factors(model, samples, TARGET, EVOLUTION, trials)
        content = found.to_dict() | {
            "held_out_loss": losses_by_plan(model, held_out, found),
            "cpu_seconds": time.process_time() - begin,
        }
        write_text(file, json.dumps(content, indent=1) + "\n")
    return file


def _samples(count: int, generator: Generator) -> list[NeedleSample]:
    """Eight at a time at most."""
    sizes = [8] * (count // 8) + [count % 8] * (count % 8 > 0)
    return [NeedleSample(*quotes(size, TARGET, generator)[:2]) for size in sizes]
