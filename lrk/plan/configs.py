"""Configs of models: those in the package by name, any other by its path."""

import json
from importlib import resources
from pathlib import Path

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


def load_config(model: str) -> PretrainedConfig:
    """The config of a model of the package, of a `config.json`, or of a folder that has one.

    Raises:
        ValueError: if there is none, or its architecture is not one of transformers'.
    """
    if model in MODELS:
        path = _FOLDER / f"{model}.json"
    else:
        path = Path(model).expanduser()
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(
                f"model is {model!r}; it must be one of {', '.join(MODELS)}, or the path of a "
                "config.json"
            )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.for_model(**values)
    # What transformers raises from a damaged config has no end.
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"model {model!r} has no usable config: {reason}") from error
    check_config("model", model, config)
    return config
