"""Configs of models: those in the package by name, any other by its path."""

import difflib
import json
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, PretrainedConfig

from lrk.pretrained import check_config

_FOLDER = resources.files("lrk.plan") / "models"

MODELS = tuple(
    sorted(
        entry.name.removesuffix(".json")
        for entry in _FOLDER.iterdir()
        if entry.name.endswith(".json")
    )
)

# Words that tell apart models of one shape, in names of the hub.
_OF_ONE_SHAPE = re.compile(r"-(instruct|base|chat|hf|it)(?=-|$)|^meta-|-(\d{4})(?=-|$)")
# Of the hub's names, how close one that is not known must be to be named.
_NEAR = 0.5


def packaged_name(model: str) -> str | None:
    """The model of the package that has the shape of `model`, by its name alone.

    `Meta-Llama-3-8B-Instruct` is `llama-3-8b`, whoever owns it and wherever it lies.
    """
    name = Path(model).name.lower()
    name = _OF_ONE_SHAPE.sub("", name)
    return name if name in MODELS else None


def load_config(model: str) -> PretrainedConfig:
    """The config of a model, without the hub.

    Args:
        model: a name of `MODELS`; a `config.json`, or a folder that has one; a name of the hub,
            whose config is in its cache, or whose shape is that of a model of the package
            (`packaged_name`).

    Raises:
        ValueError: if there is none, or its architecture is not one of transformers'.
    """
    found = _file(model)
    try:
        values = json.loads(found.read_text(encoding="utf-8"))
        config = AutoConfig.for_model(**values)
    # What transformers raises from a damaged config has no end.
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"model {model!r} has no usable config: {reason}") from error
    check_config("model", model, config)
    return config


def _file(model: str) -> Traversable | Path:
    if model in MODELS:
        return _FOLDER / f"{model}.json"
    path = Path(model).expanduser()
    is_folder = path.is_dir()
    path = path / "config.json" if is_folder else path
    if path.is_file():
        return path
    if is_folder:
        raise ValueError(f"model is the folder {model!r}, which has no config.json")
    if (cached := _cached(model)) is not None:
        return cached
    if (name := packaged_name(model)) is not None:
        return _FOLDER / f"{name}.json"
    near = _nearest(model)
    known = f"the nearest known are {near} (--help lists all)" if near else ", ".join(MODELS)
    raise ValueError(
        f"model is {model!r}; it must be the name of one that is known, such as on the hub, or the "
        f"path of a config.json or its folder: {known}"
    )


def _cached(model: str) -> Path | None:
    """The config of a model of the hub that was loaded on this machine before."""
    if model.count("/") != 1:
        return None
    try:
        found = try_to_load_from_cache(model, "config.json")
    except ValueError:  # of the hub's own kind: a name that no model there can have
        return None
    return Path(found) if isinstance(found, str) else None


def _nearest(model: str) -> str:
    last = _OF_ONE_SHAPE.sub("", Path(model).name.lower())
    return ", ".join(difflib.get_close_matches(last, MODELS, 3, _NEAR))
