"""The plan against reality: `python -m lrk.plan.check` takes real steps and compares their peaks.

On a CPU the peak is read from the allocator's record in torch.profiler, on a GPU from
`torch.cuda.max_memory_allocated`. The models are small, with random weights: memory depends on
shapes only.
"""

import argparse
import gc
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import LlamaConfig, PretrainedConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from lrk.memory.offload import HostCopies
from lrk.plan.configs import load_config
from lrk.plan.gpus import GPUS
from lrk.plan.planner import plan
from lrk.plan.settings import LIGER_STYLE, STOCK, Settings
from lrk.plan.sharding import shard
from lrk.plan.step import (
    frozen_teacher,
    materialise_buffers,
    materialise_parameters,
    meta_model,
    patch_as,
    resolved,
    run_step,
)
from lrk.versions import pip_install

MIB = 2**20
DEVICE_OF_GPUS = torch.device("cuda")
_STEP = "step of lrk.plan.check"
MODELS = ("smollm2-135m", "llama-3 narrow")


@dataclass(frozen=True)
class Comparison:
    """Peaks of one step, in bytes."""

    model: str
    settings: Settings
    planned: int
    measured: int

    @property
    def error(self) -> float:
        """How far the plan is off, as a share of what was measured."""
        return self.planned / self.measured - 1


def compare(model: str, config: PretrainedConfig, settings: Settings) -> Comparison:
    """Plan a step, take it, and compare: on a CPU if `settings.gpu` is `cpu`, else on the GPU."""
    planned = plan(model, config, settings).peak.total
    measure = peak_on_cpu if settings.gpu == "cpu" else _peak_on_gpu
    return Comparison(model, settings, planned, measure(config, settings))


def real_model(config: PretrainedConfig, settings: Settings) -> nn.Module:
    """The model of the settings on the default device, with random weights, patched."""
    model = meta_model(config, settings)
    materialise_buffers(model)
    materialise_parameters(model, fill=_small_numbers)
    patch_as(model, settings, HostCopies())
    return model


def real_teacher(config: PretrainedConfig, settings: Settings) -> nn.Module | None:
    """Likewise the second model of `distill` original, if there is one."""
    teacher = frozen_teacher(config, settings)
    if teacher is not None:
        materialise_parameters(teacher, fill=_small_numbers)
    return teacher


def _small_numbers(parameter: Tensor) -> None:
    parameter.normal_(std=0.02)


def peak_on_cpu(config: PretrainedConfig, settings: Settings) -> int:
    """The largest sum of what PyTorch's CPU allocator gave out, from the step's beginning on.

    With `fsdp` as one of so many processes, which all call this.
    """
    settings = resolved(config, settings)
    gc.collect()  # models have cycles: the last one may be there still
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = real_model(config, settings)
        teacher = real_teacher(config, settings)
        group = shard(model, settings) if settings.fsdp > 1 else None
        with record_function(_STEP):
            run_step(model, settings, group=group, teacher=teacher)
    assert profiler.profiler is not None
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    start = next(event.start_ns() for event in events if event.name() == _STEP)
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = accumulate(change for _, change in changes)
    return max(sum_ for (time, _), sum_ in zip(changes, held, strict=True) if time >= start)


def _peak_on_gpu(config: PretrainedConfig, settings: Settings) -> int:
    """The most that PyTorch's CUDA allocator had given out during the step, for the step."""
    settings = resolved(config, settings)
    gc.collect()  # models have cycles: the last one may be there still
    torch.cuda.empty_cache()
    with DEVICE_OF_GPUS:
        make_library_workspaces()
        before = torch.cuda.memory_allocated()
        model = real_model(config, settings)
        teacher = real_teacher(config, settings)
        torch.cuda.reset_peak_memory_stats()
        run_step(model, settings, teacher=teacher)
    return torch.cuda.max_memory_allocated() - before


def make_library_workspaces() -> None:
    """Let cuBLAS have what it keeps from its first product on, 32 MiB on Hopper.

    Each thread that multiplies has its own: this one, and autograd's.
    """
    x = torch.ones(16, 16, dtype=torch.bfloat16, requires_grad=True)
    (x @ x).sum().backward()


def small_models(layers: int) -> dict[str, PretrainedConfig]:
    """SmolLM2-135M with fewer layers, and a Llama-3-8B of an eighth of its width."""
    smollm2 = load_config("smollm2-135m")
    smollm2.num_hidden_layers = layers
    llama = load_config("llama-3-8b").to_dict()
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        llama[name] //= 8
    llama |= {"num_key_value_heads": 1, "head_dim": 128, "num_hidden_layers": 4}
    return dict(zip(MODELS, (smollm2, LlamaConfig(**llama)), strict=True))


TILE_TOKENS = 48
IN_BACKWARD = {"optimizer_in_backward": True, "accumulates": False, "clips": False}
QLORA = {"lora_rank": 8, "load_in_4bit": True}

# What each row changes in the first.
TECHNIQUES: dict[str, dict[str, Any]] = {
    "lrk": {},
    "without checkpointing": {"activation_checkpointing": False},
    "attention kept": {"keep_attention": True},
    "tiles": {"tile_tokens": TILE_TOKENS},
    "tiles, two layers a checkpoint": {"tile_tokens": TILE_TOKENS, "layers_per_checkpoint": 2},
    "activations on the host": {"offload_activations": True},
    "optimizer in backward": IN_BACKWARD,
    "optimizer on the host": {"offload_optimizer": True},
    "all of these": {
        "keep_attention": True,
        "layers_per_checkpoint": 2,
        "tile_tokens": TILE_TOKENS,
        "offload_activations": True,
        "offload_optimizer": True,
        **IN_BACKWARD,
    },
    "bf16 autocast": {"bf16": True},
    "LoRA": {"lora_rank": 8},
    "LoRA on bf16 weights": {"lora_rank": 8, "dtype": "bfloat16"},
    "QLoRA": QLORA,
    "QLoRA on bf16 weights": QLORA | {"dtype": "bfloat16"},
    "QLoRA, bf16 autocast": QLORA | {"bf16": True},
    "no accumulation": {"accumulates": False},
    "self-distillation, views": {"distill": "views"},
    "self-distillation, views, bf16 autocast": {"distill": "views", "bf16": True},
    "self-distillation, original": {"distill": "original"},
    "self-distillation, original, LoRA": {"distill": "original", "lora_rank": 8},
    "liger-style": {"implementation": LIGER_STYLE},
    "stock": {"implementation": STOCK},
    "stock without checkpointing": {"implementation": STOCK, "activation_checkpointing": False},
}


def settings_of(technique: str, length: int, gpu: str) -> Settings:
    """A step with one of `TECHNIQUES`; `gpu` is `cpu` or the name of the GPU."""
    usual = Settings(
        length=length,
        dtype="float32" if gpu == "cpu" else "bfloat16",
        optim="adamw_torch_fused",
        gpu=gpu,
    )
    return replace(usual, **TECHNIQUES[technique])


def _can_run(technique: str) -> bool:
    return is_bitsandbytes_available() or not TECHNIQUES[technique].get("load_in_4bit")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each step; returns 1 if a plan is off by more than the tolerance.

    Returns 2 if no step can be run.
    """
    parser = argparse.ArgumentParser(prog="python -m lrk.plan.check", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--layers", type=int, default=6, help="of SmolLM2-135M's 30")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--techniques", nargs="+", choices=TECHNIQUES, default=[*TECHNIQUES])
    parser.add_argument("--gpu", choices=sorted(GPUS), help="which GPU this is (default: the CPU)")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    arguments = parser.parse_args(argv)
    if arguments.gpu is not None and not torch.cuda.is_available():
        parser.error(f"--gpu is {arguments.gpu}, but PyTorch finds no GPU on this machine")
    techniques = [each for each in arguments.techniques if _can_run(each)]
    for technique in filter(lambda each: each not in techniques, arguments.techniques):
        print(f"{technique} is left out: it needs bitsandbytes, `{pip_install('bitsandbytes')}`")
    if not techniques:
        return 2
    rows: list[dict[str, Any]] = []
    print(f"{'model':15} {'technique':40} {'length':>6}   planned  measured     off", flush=True)
    configs = small_models(arguments.layers)
    for model in arguments.models:
        for length, technique in product(arguments.lengths, techniques):
            config = configs[model]
            settings = settings_of(technique, length, arguments.gpu or "cpu")
            found = compare(model, config, settings)
            planned, measured = found.planned / MIB, found.measured / MIB
            print(
                f"{model:15} {technique:40} {length:6} {planned:9,.1f} {measured:9,.1f} "
                f"{found.error:+7.2%}",
                flush=True,
            )
            rows.append(
                {
                    "model": model,
                    "technique": technique,
                    "settings": vars(settings),
                    "planned_mib": planned,
                    "measured_mib": measured,
                    "error": found.error,
                }
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    worst = max(abs(row["error"]) for row in rows)
    print(f"MiB; the plan is off by at most {math.ceil(worst * 10_000) / 100} %")
    return int(worst > arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
