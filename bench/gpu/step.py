"""A training step of the Llama-3-8B shape: seconds, memory beside the plan's, where the time goes.

Weights are random, and SGD has no state: it is the step that is measured, not an optimizer.
"""

import gc
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, PretrainedConfig

from bench.device import DEVICE
from bench.gpu.cell import Cell, one_line
from bench.gpu.row import BOTH, Row
from bench.gpu.sizes import REAL, Sizes
from bench.measure import timer
from lrk.plan.check import make_library_workspaces, real_model
from lrk.plan.configs import load_config
from lrk.plan.gpus import GPUS
from lrk.plan.planner import longest, plan
from lrk.plan.settings import LIGER_STYLE, STOCK, Settings
from lrk.plan.step import run_step

MIB = 2**20
NAME = "llama-3-8b"
BASE: dict[str, Any] = {"optim": "sgd", "clips": False, "accumulates": False}
LEAN = {"tile_tokens": 2048, "layers_per_checkpoint": 2, "optimizer_in_backward": True}
# What each changes in a step at the middle length, where every layer is checkpointed.
TECHNIQUES: dict[str, dict[str, Any]] = {
    "attention kept": {"keep_attention": True},
    "tiles of 2048": {"tile_tokens": 2048},
    "tiles of 8192": {"tile_tokens": 8192},
    "tiles of 32768": {"tile_tokens": 32_768},
    "two layers a checkpoint": {"layers_per_checkpoint": 2},
    "activations on the host": {"offload_activations": True},
    "optimizer in backward": {"optimizer_in_backward": True},
    "lrk's loss and RoPE, PyTorch's attention": {"implementation": LIGER_STYLE},
}
# Kernels by what they do, the first that fits.
KINDS = {
    "attention forward": "_attention_forward",
    "attention dq": "_attention_query_gradient",
    "attention dk dv": "_attention_key_gradient",
    "attention of PyTorch": "flash|fmha|cudnn.*attention|attention",
    "RoPE": "rope",
    "loss, rows": "_row_kernel",
    "products": "gemm|nvjet|cutlass|xmma|cublas|::mm|::addmm|::bmm",
    "copies": "memcpy|copy_",
    "elementwise": "elementwise|vectorized|foreach|::mul|::add|::silu",
    "reductions": "reduce|norm|::mean|::sum",
}
_LONGEST_STOCK_SHARES = (1.0, 0.9, 0.8, 0.7)


class Step(NamedTuple):
    """What is measured.

    Attributes:
        gpu: name of the card among lrk-plan's, if it has one.
        repeats: steps, of which the fastest counts.
        profiled: whether it is also said where the time goes.
    """

    what: Row
    config: PretrainedConfig
    settings: Settings
    gpu: str | None
    repeats: int = 1
    profiled: bool = False


def cells(sizes: Sizes) -> Iterator[Cell]:
    """The most telling first: our steps, stock's longest, then what each technique costs."""
    config = _config(sizes)
    gpu = gpu_of_card(torch.cuda.get_device_name())
    short, middle, long = sizes.step_lengths

    def step(variant: str, length: int, changes: dict[str, Any], **how: Any) -> Step:
        settings = Settings(length=length, gpu=gpu or "h100", **BASE | changes)
        shape = {"B": settings.batch, "S": length, "layers": config.num_hidden_layers}
        what = Row("step", BOTH, shape, settings.dtype, settings.implementation, variant)
        return Step(what, config, settings, gpu, **how)

    plain = [step("", short, {}, repeats=3), step("", middle, {}, repeats=2, profiled=True)]
    stock = step("at most as long as fits", long, {"implementation": STOCK})
    others = [step("tiles of 2048, two layers a checkpoint, in backward", long, LEAN)]
    for variant, changes in TECHNIQUES.items():
        # What is offloaded first meets memory of the host that is not pinned yet.
        repeats = 2 if changes.get("offload_activations") else 1
        others.append(step(variant, middle, changes, repeats=repeats))
    plans = _plans([*plain, *others])
    yield from (_cell(each, plans) for each in plain)
    yield Cell(stock.what, partial(_time_longest_stock, stock))
    yield from (_cell(each, plans) for each in others)


def _cell(step: Step, plans: Mapping[Settings, AsyncResult[int]]) -> Cell:
    return Cell(step.what, partial(_time_step, step, plans[step.settings].get))


def _plans(steps: Sequence[Step]) -> dict[Settings, AsyncResult[int]]:
    """Planned bytes of each step, traced while the device is at work: some take a minute.

    The processes end with this one, whatever is still planned.
    """
    pool = get_context("spawn").Pool(max(1, min(4, (os.cpu_count() or 1) - 1)))
    return {
        step.settings: pool.apply_async(planned_bytes, (step.config, step.settings))
        for step in steps
    }


def planned_bytes(config: PretrainedConfig, settings: Settings) -> int:
    return plan(NAME, config, settings).peak.total


def _config(sizes: Sizes) -> PretrainedConfig:
    if sizes is REAL:
        return load_config(NAME)
    return LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def gpu_of_card(card: str) -> str | None:
    """Name of the card among lrk-plan's, or None."""
    words = re.findall(r"[a-z0-9]+", card.lower())
    joined = "".join(words)
    return next((gpu for gpu in GPUS if gpu in words or gpu.replace("-", "") in joined), None)


def useful_flop(config: PretrainedConfig, settings: Settings, parameters: int) -> float:
    """6 a parameter and token; 14 a pair of tokens and element of a head, of which half are masked.

    What is computed again because of checkpointing is not useful. 14 is 4 of the forward pass and
    10 of the backward pass, in which flash attention makes the scores again.
    """
    tokens = settings.batch * settings.length
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_hidden_layers * config.num_attention_heads * head_dim
    return 6 * parameters * tokens + 14 * width * tokens * settings.length / 2


def _time_step(step: Step, planned: Callable[[], int]) -> Iterator[Row]:
    config, settings = step.config, step.settings
    with torch.device(DEVICE):
        make_library_workspaces()
        before = torch.cuda.memory_allocated()
        model = real_model(config, settings)
        if not settings.optimizer_in_backward:  # whose hooks would stay
            run_step(model, replace(settings, length=max(settings.length // 8, 2)))
        torch.cuda.reset_peak_memory_stats()
        times = [_seconds(model, settings) for _ in range(step.repeats)]
        peak = torch.cuda.max_memory_allocated() - before
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rate = useful_flop(config, settings, parameters) / min(times)
    row = replace(
        step.what,
        milliseconds=1000 * min(times),
        spread=1000 * (max(times) - min(times)) if step.repeats > 1 else None,
        tflop_per_s=rate / 1e12,
        mfu=None if step.gpu is None else rate / GPUS[step.gpu].flops_per_second,
        peak_mib=peak / MIB,
    )
    yield _with_plan(row, planned)
    if step.profiled:
        yield from _profiled(replace(step.what, op="kernel"), model, settings)


def _with_plan(row: Row, planned: Callable[[], int]) -> Row:
    try:
        return replace(row, planned_mib=planned() / MIB)
    # What was measured stands, whatever a plan dies of.
    except Exception as error:
        return replace(row, note=f"not planned: {one_line(error)}")


def _seconds(model: nn.Module, settings: Settings) -> float:
    start = timer()
    run_step(model, settings)
    return timer() - start


def _time_longest_stock(step: Step) -> Iterator[Row]:
    """At the longest length that does not run out of memory, beginning with the plan's."""
    at_most = step.settings.length
    gib = torch.cuda.get_device_properties().total_memory / 2**30
    predicted = min(longest(NAME, step.config, step.settings, gib).settings.length, at_most)
    for share in _LONGEST_STOCK_SHARES:
        settings = replace(step.settings, length=int(share * predicted))
        row = replace(step.what, shape=step.what.shape | {"S": settings.length})
        tried = step._replace(what=row, settings=settings)
        try:
            yield from _time_step(tried, partial(planned_bytes, step.config, settings))
            return
        except torch.OutOfMemoryError:
            pass  # the exception has to be gone before the memory that its frames hold is free
        gc.collect()
        torch.cuda.empty_cache()
        yield replace(row, note="out of memory")


def _profiled(what: Row, model: nn.Module, settings: Settings) -> Iterator[Row]:
    """Milliseconds of each kind of kernel in one more step, and its share of the whole."""
    on_gpu = DEVICE.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with torch.device(DEVICE), profile(activities=[activity]) as profiler:
        run_step(model, settings)
        torch.cuda.synchronize()
    total: Counter[str] = Counter()
    for event in profiler.key_averages():
        if not event.is_user_annotation:  # spans over kernels that are there themselves
            total[_kind(event.key)] += (
                event.self_device_time_total if on_gpu else event.self_cpu_time_total
            )
    whole = sum(total.values())
    for kind, microseconds in total.most_common():
        yield replace(
            what, variant=kind, milliseconds=microseconds / 1000, share=microseconds / whole
        )


def _kind(kernel: str) -> str:
    for kind, pattern in KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "other"
