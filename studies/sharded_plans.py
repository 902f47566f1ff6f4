"""The plan of a rank beside what ranks allocate, as their CPU allocators record it.

    python -m studies.sharded_plans --processes 2 4

A narrow Llama whose activations are most of the peak, in float32, random weights; each rank takes a
step on gloo, sharded as the plan's is. gloo's own threads let go of tensors some time after a
collective, which can only add to a peak, and of experts several times what a plan is off by: of
several rounds the least counts, of ranks the most.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch.distributed as dist
from transformers import LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from lrk.plan import Settings, plan
from lrk.plan.check import peak_on_cpu
from studies.ranks import run_ranks

TILE_TOKENS = 64
SHARED = {"sequence_parallel": 2}
ONE_BATCH = {"accumulates": False}

# What each changes in a step that meets gradients of an earlier micro-batch.
TECHNIQUES: dict[str, dict[str, Any]] = {
    "full parameters": ONE_BATCH,
    "the same, tiles": ONE_BATCH | {"tile_tokens": TILE_TOKENS},
    "the same, activations on the host": ONE_BATCH | {"offload_activations": True},
    "the same, bf16": ONE_BATCH | {"bf16": True},
    "accumulated": {},
    "accumulated, whole gradients": {"sync_each_batch": False},
    "LoRA": ONE_BATCH | {"lora_rank": 8},
    "LoRA, bf16": ONE_BATCH | {"lora_rank": 8, "bf16": True},
    "two to a sample": ONE_BATCH | SHARED,
    "two to a sample, tiles": ONE_BATCH | SHARED | {"tile_tokens": TILE_TOKENS},
    "two to a sample, LoRA": ONE_BATCH | SHARED | {"lora_rank": 8},
}
# Of another model, whose experts are planned in bf16.
TECHNIQUES_OF_EXPERTS: dict[str, dict[str, Any]] = {
    "two to a sample, experts": ONE_BATCH | SHARED | {"dtype": "bfloat16"},
}


_ALL = TECHNIQUES | TECHNIQUES_OF_EXPERTS


class Row(NamedTuple):
    """Peaks of a rank, in bytes."""

    technique: str
    planned: int
    measured: int

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def narrow_llama(layers: int = 4) -> LlamaConfig:
    """Grouped heads, an MLP of three times the width, and its own output embedding."""
    return LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )


def narrow_qwen3_moe(layers: int = 4) -> Qwen3MoeConfig:
    """The same with two of four experts of half the MLP's width."""
    shape = narrow_llama(layers).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    heads = ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
    return Qwen3MoeConfig(
        **{name: shape[name] for name in (*names, *heads)},
        moe_intermediate_size=384,
        num_experts=4,
        num_experts_per_tok=2,
    )


def compare(
    processes: int,
    length: int,
    techniques: Sequence[str],
    config: PretrainedConfig,
    rounds: int = 3,
) -> Iterator[Row]:
    """A row for each technique, of a sample of `length` tokens."""
    usual = Settings(
        length=length,
        dtype="float32",
        optim="adamw_torch_fused",
        gpu="cpu",
        fsdp=processes,
    )
    steps = [replace(usual, **_ALL[technique]) for technique in techniques]
    peaks = run_ranks(_measure, processes, config, steps, rounds, timeout=1800)
    for technique, settings, of_ranks in zip(
        techniques, steps, zip(*peaks, strict=True), strict=True
    ):
        planned = plan(f"narrow {config.model_type}", config, settings).peak.total
        yield Row(technique, planned, max(of_ranks))


def _measure(config: PretrainedConfig, steps: Sequence[Settings], rounds: int) -> list[int]:
    dist.init_process_group("gloo")
    return [min(peak_on_cpu(config, settings) for _ in range(rounds)) for settings in steps]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; returns 1 if a plan is off by more than the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m studies.sharded_plans", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--techniques", nargs="+", choices=_ALL, default=[*_ALL])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tolerance", type=float, default=0.03)
    arguments = parser.parse_args(argv)
    print("| processes | | planned, MiB | measured | off |\n|---|---|---|---|---|")
    worst = 0.0
    models = (TECHNIQUES, narrow_llama()), (TECHNIQUES_OF_EXPERTS, narrow_qwen3_moe())
    for processes, (known, config) in product(arguments.processes, models):
        techniques = [each for each in arguments.techniques if each in known]
        for row in compare(processes, arguments.length, techniques, config, arguments.rounds):
            planned, measured = row.planned / 2**20, row.measured / 2**20
            print(
                f"| {processes} | {row.technique} | {planned:.2f} | {measured:.2f} "
                f"| {row.error:+.2%} |",
                flush=True,
            )
            worst = max(worst, abs(row.error))
    return int(worst > arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
