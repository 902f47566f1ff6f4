"""Configurations that come with lrk: the files of `configs/`, known by their names."""

from importlib.resources import files
from pathlib import Path

from lrk.train.nearest import did_you_mean


def preset_names() -> list[str]:
    """Names that `lrk-train` takes in place of a file."""
    folder = files("lrk") / "configs"
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def preset(name: str) -> Path:
    """The file of a preset.

    Raises:
        ValueError: for a name that there is not; the message lists those there are.
    """
    names = preset_names()
    if name not in names:
        raise ValueError(
            f"{name!r} is neither a YAML file nor a preset; presets are {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    return Path(str(files("lrk") / "configs" / f"{name}.yaml"))
