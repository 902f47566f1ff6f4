"""Time and memory of a training step with lrk's memory techniques, beside stock transformers.

    python -m bench.lean_step [--lengths 2048 8192] [--rounds 5] [--layers 30] [--json FILE]
                              [--only stock lrk] [--tile_tokens 512]

SmolLM2-135M's shape with random weights, in float32 on a CPU and in bfloat16 on a GPU; forward and
backward, gradients accumulated, every layer checkpointed. The models take turns, so that what else
the machine does hits all of them; times are medians, memory is the allocator's record of a step
beyond what was there before it. Offload is not in the table: a CPU has nowhere to offload to.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

import lrk
from bench.bench_step import SHAPE, smollm2
from bench.device import DEVICE
from bench.measure import peak_bytes, timer
from lrk.memory import checkpointing

STOCK = "stock"
MIB = 2**20


def stock(model: LlamaForCausalLM) -> None:
    model.set_attn_implementation("sdpa")
    checkpointing.enable(model, keep_attention=False)


def with_lrk(model: LlamaForCausalLM, tile_tokens: int = 0, **choices: Any) -> None:
    lrk.patch(model, tile_tokens=tile_tokens)
    checkpointing.enable(model, **{"keep_attention": False} | choices)


def providers(tile_tokens: int) -> dict[str, Callable[[LlamaForCausalLM], None]]:
    tiles = functools.partial(with_lrk, tile_tokens=tile_tokens)
    return {
        STOCK: stock,
        "lrk": with_lrk,
        "attention kept": functools.partial(with_lrk, keep_attention=True),
        "tiles": tiles,
        "tiles, two layers a checkpoint": functools.partial(tiles, layers_per_checkpoint=2),
        "tiles, attention kept": functools.partial(tiles, keep_attention=True),
    }


def made(prepare: Callable[[LlamaForCausalLM], None], layers: int) -> LlamaForCausalLM:
    """A model that has gradients already."""
    model = smollm2()
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    prepare(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model.train()


def take_step(model: LlamaForCausalLM, tokens: torch.Tensor) -> None:
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()


def compare(
    prepared: dict[str, Callable[[LlamaForCausalLM], None]], length: int, rounds: int, layers: int
) -> list[dict[str, Any]]:
    """A row for each provider, with ratios to the stock model."""
    tokens = torch.randint(0, SHAPE.vocab, (1, length), device=DEVICE)
    models = {provider: made(prepare, layers) for provider, prepare in prepared.items()}
    bytes_of = {
        provider: peak_bytes(functools.partial(take_step, model, tokens))
        for provider, model in models.items()
    }
    seconds: dict[str, list[float]] = {provider: [] for provider in models}
    for _ in range(rounds):
        for provider, model in models.items():
            start = timer()
            take_step(model, tokens)
            seconds[provider].append(timer() - start)
    median = {provider: statistics.median(times) for provider, times in seconds.items()}
    return [
        {
            "provider": provider,
            "length": length,
            "layers": layers,
            "seconds": median[provider],
            "time_ratio": median[provider] / median[STOCK],
            "peak_mib": bytes_of[provider] / MIB,
            "peak_ratio": bytes_of[provider] / bytes_of[STOCK],
        }
        for provider in models
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.lean_step", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--tile_tokens", type=int, default=512)
    parser.add_argument("--only", nargs="+", choices=providers(1), help="these, beside stock")
    arguments = parser.parse_args()
    every = providers(arguments.tile_tokens)
    chosen = {STOCK, *(arguments.only or every)}
    prepared = {name: prepare for name, prepare in every.items() if name in chosen}
    rows: list[dict[str, Any]] = []
    print(f"{'':30} {'tokens':>6} {'s':>8} {'ratio':>6} {'MiB':>9} {'ratio':>6}", flush=True)
    for length in arguments.lengths:
        for row in compare(prepared, length, arguments.rounds, arguments.layers):
            print(
                f"{row['provider']:30} {length:6} {row['seconds']:8.2f} {row['time_ratio']:6.2f} "
                f"{row['peak_mib']:9,.1f} {row['peak_ratio']:6.2f}",
                flush=True,
            )
            rows.append(row)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
