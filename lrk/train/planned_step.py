"""The step of a run as the planner predicts it: its memory and time, before anything is loaded."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from lrk.hf.backends import LRK
from lrk.plan import Plan, Settings, plan
from lrk.plan.command import adapters, teacher
from lrk.plan.gpus import GPUS
from lrk.plan.ledger import HOST
from lrk.plan.planner import ALLOCATOR_SLACK, CONTEXT_GIB, GIB
from lrk.plan.settings import IMPLEMENTATIONS, OPTIMIZERS
from lrk.train.arguments import ATTENTION, LrkTrainingArguments
from lrk.train.card import card_of
from lrk.train.engine import engine_of
from lrk.train.pretrained import stored_dtype

CPU = "cpu"
# Whose kernels are planned where no GPU is named or found, or it is none that the planner knows.
_USUAL = "h100"
# A plan without optimizer state.
_STATELESS = "sgd"
# Parts of the peak below this share of it are not named.
_LITTLE = 0.005


class Device(NamedTuple):
    """What a step is predicted for.

    Attributes:
        kernels: one of `GPUS`, or `cpu`, whose kernels are planned.
        gib: its memory, or None where it is not known.
        name: in words.
    """

    kernels: str
    gib: float | None
    name: str


class PlannedStep(NamedTuple):
    """A plan, and what it is for.

    Attributes:
        plan: None where there is none.
        reason: why there is none.
        is_refused: whether that is because the device has no such step.
    """

    device: Device
    plan: Plan | None
    reason: str = ""
    is_refused: bool = False


def device_of(arguments: LrkTrainingArguments) -> Device:
    """The GPU that is named, or that of this machine; its CPU where that was asked for.

    Without a GPU one is planned for all the same, of no known memory: presets are for GPUs, and
    their dry runs need none.
    """
    if arguments.gpu is not None:
        return Device(arguments.gpu, GPUS[arguments.gpu].gib, arguments.gpu)
    if not (arguments.is_given("use_cpu") or torch.cuda.is_available()):
        return Device(_USUAL, None, "a GPU")
    return _device_here(arguments)


def _device_here(arguments: LrkTrainingArguments) -> Device:
    """What the run would take on this machine."""
    if arguments.use_cpu or not torch.cuda.is_available():
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return Device(CPU, memory, "this machine's CPU")
    found = torch.cuda.get_device_properties(0)
    try:
        card = card_of(None)
    except ValueError:  # none that the planner knows
        return Device(_USUAL, found.total_memory / GIB, found.name)
    return Device(card.name, card.gib, f"this machine's {card.name}")


def planned_step(
    arguments: LrkTrainingArguments, config: PretrainedConfig, device: Device
) -> PlannedStep:
    """Trace a step of the run on fake tensors."""
    implementation = kernels_implementation(arguments.kernels)
    if implementation is None:
        return PlannedStep(device, None, f"not predicted for kernels {arguments.kernels}")
    optim = str(arguments.to_dict()["optim"])
    on_gpu = device.kernels != CPU
    try:
        settings = plan_settings(arguments, config, implementation, optim, device.kernels)
    except ValueError as error:
        return PlannedStep(device, None, f"not predicted: {error}", is_refused=True)
    if on_gpu and arguments.use_cpu and not (arguments.is_given("bf16") or arguments.fp16):
        # What a run resolves to on a GPU, whatever this machine has.
        settings = replace(settings, bf16=True)
    try:
        return PlannedStep(device, plan(str(arguments.model_name_or_path), config, settings))
    except ValueError as error:  # No reason against the run itself.
        return PlannedStep(device, None, f"not predicted: {error}")


def memory_lines(step: PlannedStep, arguments: LrkTrainingArguments) -> Iterator[str]:
    """The peak of a step, what it is made of, and whether the device has as much."""
    yield "Memory of a step, predicted: traced without the weights"
    if step.plan is None:
        yield f"  {step.reason}"
        return
    found, settings = step.plan, step.plan.settings
    parts = {part.replace("_", " "): gib for part, gib in found.parts_gib.items()}
    host = parts.pop(HOST.replace("_", " "))
    whose = "" if settings.attention == LRK else f" with {settings.attention}"
    moment = found.peak.moment
    yield (
        f"  step             {settings.implementation}{whose}, {settings.dtype}, "
        f"{adapters(settings)}{settings.optim}"
    )
    for line in teacher(settings):
        yield f"  and              {line}"
    yield f"  peak             {found.peak_gib:,.2f} GiB in {moment.phase}"
    little = _LITTLE * found.peak_gib
    named = [f"{part} {gib:,.2f}" for part, gib in parts.items() if gib >= little]
    yield f"  of which         {', '.join(named)}"
    phases = [f"{phase} {usage.total / GIB:,.2f}" for phase, usage in found.phases.items()]
    yield f"  each phase       {', '.join(phases)}"
    if host > 0:
        yield f"  on the host      {host:,.2f} GiB"
    optim = str(arguments.to_dict()["optim"])
    if optim not in OPTIMIZERS:
        yield f"  not predicted    the optimizer state of {optim}: it comes on top"
    if any(map(arguments.is_given, ("lora_targets", "lora_dropout"))):
        yield "  adapters         planned on all linear layers and without their dropout"
    yield f"  fits             {'; '.join(_fits(step.device, found, host))}"


def _fits(device: Device, found: Plan, host: float) -> Iterator[str]:
    """Whether the device has the memory, or which GPUs have it."""
    if device.kernels == CPU:
        assert device.gib is not None
        needed = found.peak_gib
        yield f"{_whether(needed, device.gib)}: this machine has {device.gib:,.1f} GiB in all"
        return
    needed = found.device_gib
    assumed = f"with {ALLOCATOR_SLACK:.0%} slack and {CONTEXT_GIB} GiB of context, assumed"
    if device.gib is not None:
        yield (
            f"{_whether(needed, device.gib)}: {device.name} has {device.gib:,.1f} GiB, the step "
            f"needs {needed:,.1f} {assumed}"
        )
        if needed > device.gib:
            yield "a preset or --recipe auto saves memory (docs/memory.md)"
        return
    yield f"a GPU of {needed:,.1f} GiB, {assumed}"
    large = [name for name, gpu in GPUS.items() if gpu.gib >= needed]
    yield f"of the known ones {', '.join(large) if large else 'none'}"
    yield "this machine has none (--gpu NAME asks for one, --use_cpu for this CPU)"


def _whether(needed: float, there: float) -> str:
    return "yes" if needed <= there else "NO"


def plan_settings(
    arguments: LrkTrainingArguments,
    config: PretrainedConfig,
    implementation: str,
    optim: str,
    gpu: str,
) -> Settings:
    """The step of a run, on a GPU of that name or on a `cpu`."""
    attention = arguments.kernels[ATTENTION]
    engine = engine_of(arguments)
    accumulates = arguments.gradient_accumulation_steps > 1
    return Settings(
        length=arguments.train_length,
        batch=arguments.per_device_train_batch_size,
        implementation=implementation,
        attention=attention if isinstance(attention, str) else LRK,
        dtype=str(stored_dtype(arguments, config)).removeprefix("torch."),
        bf16=bool(arguments.bf16 or arguments.fp16),  # float16 takes as many bytes
        activation_checkpointing=bool(arguments.gradient_checkpointing),
        keep_attention=arguments.keep_attention,
        layers_per_checkpoint=arguments.layers_per_checkpoint,
        tile_tokens=arguments.tile_tokens,
        offload_activations=arguments.offload_activations,
        optimizer_in_backward=arguments.optimizer_in_backward,
        offload_optimizer=arguments.offload_optimizer,
        accumulates=accumulates,
        optim=optim if optim in OPTIMIZERS else _STATELESS,
        lora_rank=arguments.lora_rank,
        lora_modules_to_save=tuple(arguments.lora_modules_to_save),
        load_in_4bit=arguments.load_in_4bit,
        clips=arguments.max_grad_norm > 0,
        distill=arguments.distill,
        distill_length=arguments.distill_length or 0,
        gpu=gpu,
        fsdp=engine.processes if engine.shards_weights else 1,
        sequence_parallel=engine.sequence_parallel,
        sync_each_batch=not (accumulates and engine.shards_weights) or _syncs_each_batch(arguments),
    )


def _syncs_each_batch(arguments: LrkTrainingArguments) -> bool:
    """Whether accelerate reduces gradients after each micro-batch."""
    options = arguments.to_dict()["accelerator_config"]["gradient_accumulation_kwargs"] or {}
    return bool(options.get("sync_each_batch"))


def kernels_implementation(kernels: dict[str, Any]) -> str | None:
    """The planner's name of a choice of kernels, whosever attention it is, or None."""
    runs = {kernel: bool(choice) for kernel, choice in kernels.items()}
    return next((name for name, parts in IMPLEMENTATIONS.items() if parts == runs), None)
