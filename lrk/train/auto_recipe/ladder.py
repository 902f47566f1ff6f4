"""Memory techniques from cheap to dear: the first rung whose planned step fits the card.

A rung that costs time alone comes before one that costs precision, this before one that waits for
the bus, then what changes the batch, and adapters last. Within such a group FLOPs rise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from lrk.plan import Plan, plan
from lrk.plan.planner import ALLOCATOR_SLACK, CONTEXT_GIB, GIB
from lrk.plan.settings import LOW_BIT
from lrk.pretrained import meta_model
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.card import Card
from lrk.train.planned_step import kernels_implementation, plan_settings

LORA_RANK = 16
# LongLoRA (2309.12307, 3.3): adapters alone do not learn long context.
WHOLE_MODULES = ["embed_tokens", "norm"]
_TILES = 16


@dataclass(frozen=True)
class Rung:
    """One combination of techniques.

    Attributes:
        name: in words.
        values: arguments of `lrk-train`.
        costs: what is paid for it beside FLOPs.
    """

    name: str
    values: Mapping[str, Any]
    costs: str = ""


@dataclass(frozen=True)
class Tried:
    """A rung, and its plan or why there is none."""

    rung: Rung
    plan: Plan | None
    reason: str = ""


def rungs(values: Mapping[str, Any]) -> Iterator[Rung]:
    """All of them for a run of these arguments, from cheap to dear."""
    length = values["train_length"]
    # The least power of two that makes at most `_TILES` tiles.
    tiles = {"tile_tokens": 1 << (-(-length // _TILES) - 1).bit_length()}
    checkpoints = {"gradient_checkpointing": True}
    kept = checkpoints | {"keep_attention": True}
    tiled = checkpoints | tiles
    grouped = tiled | {"layers_per_checkpoint": 2}
    offloaded = tiled | {"offload_activations": True}
    of_time = {
        "no checkpoints": {"gradient_checkpointing": False},
        "checkpoints that keep attention": kept,
        "checkpoints": checkpoints,
        "checkpoints, tiles": tiled,
        "checkpoints of two layers, tiles": grouped,
    }
    float32 = {"dtype": "float32", "optim": "adamw_torch_fused"}
    bf16 = {"dtype": "bfloat16", "optim": "adamw_torch_8bit"}
    for name, chosen in of_time.items():
        yield Rung(f"float32 weights, {name}", float32 | chosen)
    rounded = "weights are rounded to bf16, Adam's moments to 8 bits"
    for name, chosen in of_time.items():
        yield Rung(f"bf16 weights, 8-bit Adam, {name}", bf16 | chosen, rounded)
    yield Rung(
        "bf16 weights, 8-bit Adam, tiles, activations on the host",
        bf16 | offloaded,
        f"{rounded}; checkpoints cross the bus",
    )
    on_host = bf16 | {"optim": "adamw_torch_fused", "offload_optimizer": True}
    bus = "weights are rounded to bf16; the device waits for the host's optimizer at each step"
    for name, chosen in (
        ("checkpoints", checkpoints),
        ("checkpoints, tiles", tiled),
        ("tiles, activations on the host", offloaded),
    ):
        yield Rung(f"bf16 weights, optimizer on the host, {name}", on_host | chosen, bus)
    at_once: dict[str, Any] = {"optimizer_in_backward": True, "max_grad_norm": 0.0}
    at_once["gradient_accumulation_steps"] = 1
    if values.get("max_steps", 0) > 0:
        at_once["max_steps"] = values["max_steps"] * values.get("gradient_accumulation_steps", 1)
    single = "one sample a step and no clipping, at the same tokens in all: not measured"
    yield Rung(
        "bf16 weights, optimizer on the host and in the backward pass, tiles, activations on the "
        "host",
        on_host | offloaded | at_once,
        f"{bus}; {single}",
    )
    adapters = {
        "dtype": "bfloat16",
        "optim": "adamw_torch_fused",
        "lora_rank": LORA_RANK,
        "lora_modules_to_save": WHOLE_MODULES,
    }
    few = "adapters, embeddings and norms alone are trained: not measured"
    for name, chosen in (
        ("checkpoints", checkpoints),
        ("checkpoints, tiles", tiled),
        ("tiles, activations on the host", offloaded),
    ):
        yield Rung(f"LoRA of rank {LORA_RANK}, {name}", adapters | chosen, few)
    yield Rung(
        f"QLoRA of rank {LORA_RANK}, tiles, activations on the host",
        adapters | offloaded | {"load_in_4bit": True},
        f"{few}; and the weights under them are rounded to 4 bits",
    )


def climb(
    model: str,
    config: PretrainedConfig,
    values: Mapping[str, Any],
    given: Mapping[str, Any],
    card: Card,
) -> list[Tried]:
    """Try rungs until one fits; the last of the list does, if any.

    What is given beats a rung. A rung that it makes impossible is passed over, and so is one that
    it makes the same as one before.

    Args:
        model: its name, for the plans.
        values: arguments of the run beside the techniques.
        given: arguments that hold whatever the rung.
    """
    tried: list[Tried] = []
    seen: list[dict[str, Any]] = []
    parameters = sum(parameter.numel() for parameter in meta_model(config).parameters())
    for rung in rungs(values):
        whole = {**values, **rung.values, **given}
        if whole in seen:
            continue
        seen.append(whole)
        least = _states_gib(whole, parameters)
        if least > card.gib:
            tried.append(
                Tried(rung, None, f"weights, gradients and optimizer alone take {least:.1f} GiB")
            )
            continue
        try:
            found = _planned(model, config, whole, card)
        except ValueError as error:
            tried.append(Tried(rung, None, str(error)))
            continue
        tried.append(Tried(rung, found))
        if found.device_gib <= card.gib:
            break
    return tried


def fits(tried: Tried, card: Card) -> bool:
    """Whether its step is planned to fit."""
    return tried.plan is not None and tried.plan.device_gib <= card.gib


def _planned(model: str, config: PretrainedConfig, values: Mapping[str, Any], card: Card) -> Plan:
    arguments = LrkTrainingArguments(**values)
    implementation = kernels_implementation(arguments.kernels)
    if implementation is None:
        raise ValueError(f"kernels {arguments.kernels} are not planned")
    optim = str(arguments.to_dict()["optim"])
    settings = plan_settings(arguments, config, implementation, optim, card.name)
    # What a run resolves to on a GPU, whatever this machine has.
    autocast = values.get("bf16")
    settings = replace(settings, bf16=not arguments.fp16 if autocast is None else bool(autocast))
    return plan(model, config, settings)


def _states_gib(values: Mapping[str, Any], parameters: int) -> float:
    """The least that weights, gradients and optimizer take, whatever the length of a sample."""
    dtype = str(values.get("dtype", "float32"))
    size = 2.0 if dtype == "auto" else float(getattr(torch, dtype).itemsize)
    if values.get("lora_rank"):
        each = 0.5 if values.get("load_in_4bit") else size
    else:
        optim = str(values.get("optim"))
        moments = 2 * LOW_BIT.get(optim, size if optim.startswith("adamw_torch") else 0.0)
        if values.get("offload_optimizer"):
            moments = 0.0
        each = size + moments + (0.0 if values.get("optimizer_in_backward") else size)
    return parameters * each / GIB * (1 + ALLOCATOR_SLACK) + CONTEXT_GIB
