"""The step that is planned where no flag says which: that of a model's preset, or one like it."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import yaml
from transformers import PretrainedConfig

from lrk.hf.architectures import text_config
from lrk.layer_kinds import layer_kinds, period
from lrk.plan.configs import packaged_name
from lrk.plan.settings import Settings
from lrk.train.presets import preset, preset_names

# What lrk-train's presets of 7B and 8B models have, and the tokens of its default target.
_LIKE_PRESETS = {"tile_tokens": 2048, "optim": "adamw_torch_8bit"}
_LENGTH = 39_322

# Where lrk-train's argument has another name, or its default is another, than that of `Settings`.
_OF_A_RUN = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "dtype": "float32",
}
_OF_A_STEP = frozenset(field.name for field in fields(Settings)) - {"length", "gpu", "bf16"}


class Step(NamedTuple):
    """A step, and where it comes from.

    Attributes:
        settings: of `Settings`, `length` among them.
        source: in words.
    """

    settings: dict[str, Any]
    source: str


def usual_step(model: str, config: PretrainedConfig, on_gpu: bool) -> Step:
    """The step of the preset that extends a model the farthest, or without one a step like it.

    Presets are known by the shape of their model (`lrk.plan.configs.packaged_name`). One in stages
    has several steps, and is passed over.

    Args:
        on_gpu: where bf16 autocast is what `lrk-train` has.
    """
    found = _preset(model)
    if found is not None:
        name, content = found
        return Step(step_of_run(content) | {"bf16": on_gpu}, f"the step of the preset {name}")
    settings: dict[str, Any] = {"length": _LENGTH, **_LIKE_PRESETS, "bf16": on_gpu}
    text = text_config(config)
    if period(layer_kinds(text)) == 1 and text.num_hidden_layers % 2 == 0:
        settings["layers_per_checkpoint"] = 2
    return Step(settings, "no preset has this model: a step like that of presets of 7B and 8B")


def step_of_run(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `Settings` of a step follow from arguments of `lrk-train` and their defaults."""
    run = {**_OF_A_RUN, **content}
    return {name: value for name, value in run.items() if name in _OF_A_STEP} | {
        "length": run["train_length"],
        "batch": run["per_device_train_batch_size"],
        "activation_checkpointing": run["gradient_checkpointing"],
        "accumulates": run["gradient_accumulation_steps"] > 1,
        "clips": run["max_grad_norm"] > 0,
    }


def _preset(model: str) -> tuple[str, dict[str, Any]] | None:
    """Name and content of the preset of a model with the longest window."""
    wanted = packaged_name(model)
    if wanted is None:
        return None
    found = [
        (name, content)
        for name in preset_names()
        if packaged_name((content := _content(name))["model_name_or_path"]) == wanted
        and "stages" not in content
    ]
    return max(found, key=lambda each: each[1]["target_length"], default=None)


def _content(name: str) -> dict[str, Any]:
    return yaml.safe_load(preset(name).read_text(encoding="utf-8"))
