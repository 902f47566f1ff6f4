"""A planned step beside others of the same tokens: what less memory, or more, would cost."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from lrk.plan.ledger import HOST
from lrk.plan.planner import Plan, plan
from lrk.plan.settings import STOCK, Settings

_WHOLE: dict[str, Any] = {"tile_tokens": 0, "layers_per_checkpoint": 1, "keep_attention": False}
_ADAPTERS: dict[str, Any] = {"lora_rank": 16, "optim": "adamw_torch_fused"}
_ON_HOST: dict[str, Any] = {
    "tile_tokens": 2048,
    "layers_per_checkpoint": 1,
    "offload_activations": True,
    "offload_optimizer": True,
    "optim": "adamw_torch_fused",
}

# Few, and such as are traced in seconds: each is a whole step.
_VARIANTS: dict[str, dict[str, Any]] = {
    "whole layers": _WHOLE,
    "checkpoints on the host": _WHOLE | {"offload_activations": True},
    "and the optimizer, with tiles": _ON_HOST,
    "LoRA of rank 16, whole layers": _WHOLE | _ADAPTERS,
    "stock transformers": _WHOLE | {"implementation": STOCK},
}


class Variant(NamedTuple):
    """Another step.

    Attributes:
        name: in words.
        flags: of `lrk-plan`, which plan it alone.
        plan: or why there is none.
    """

    name: str
    flags: str
    plan: Plan | str


def variants(planned: Plan, config: PretrainedConfig) -> list[Variant]:
    """Plans of the same tokens with other techniques; one that the step has already is left out."""
    found = []
    for name, changes in _VARIANTS.items():
        changes = changes | {"activation_checkpointing": True}
        settings = replace(planned.settings, **changes)
        if settings != planned.settings:
            found.append(Variant(name, flags(settings), _planned(planned.model, config, settings)))
    return found


def _planned(model: str, config: PretrainedConfig, settings: Settings) -> Plan | str:
    try:
        return plan(model, config, settings)
    except ValueError as error:  # No reason against the others.
        return str(error)


def flags(settings: Settings) -> str:
    """What `lrk-plan` needs beside model, length and GPU to plan a step.

    A step that needs none gets `--tile_tokens 0`, since without flags another is planned.
    """
    plain = Settings(length=settings.length, gpu=settings.gpu)
    words = [
        _flag(name, value)
        for name, value in vars(settings).items()
        if value != getattr(plain, name) and name != "bf16"
    ]
    return " ".join(words + ["--bf16"] * settings.bf16) or "--tile_tokens 0"


def _flag(name: str, value: Any) -> str:
    if value is True:
        return f"--{name}"
    if value is False:
        return f"--no-{name}"
    return f"--{name} {' '.join(value) if isinstance(value, tuple) else value}"


def variants_table(planned: Plan, others: list[Variant]) -> Iterator[str]:
    """Lines: GiB at the peak and on the host, and TFLOP of a step."""
    yield f"{'Beside it':32}{'GiB':>8}{'on host':>9}{'TFLOP':>10}  flags"
    yield _row("the step above", planned, "")
    for name, words, found in others:
        if isinstance(found, Plan):
            yield _row(name, found, words)
        else:
            yield f"  {name:30} not planned: {found}"


def _row(name: str, found: Plan, words: str) -> str:
    host: Mapping[str, float] = found.parts_gib
    line = f"  {name:30}{found.peak_gib:8.2f}{host[HOST]:9.2f}{found.flops / 1e12:10,.0f}"
    return f"{line}  {words}".rstrip()
