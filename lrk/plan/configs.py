"""Configs of models: those in the package by name, any other by its path."""

import json
from importlib import resources
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

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
        text = (_FOLDER / f"{model}.json").read_text(encoding="utf-8")
    else:
        path = Path(model).expanduser()
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(
                f"model is {model!r}; it must be one of {', '.join(MODELS)}, or the path of a "
                "config.json"
            )
        text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text)
        return AutoConfig.for_model(**values)
    except (TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"model {model!r} has no usable config: {reason}") from error
