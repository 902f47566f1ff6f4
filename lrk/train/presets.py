"""Configurations that come with lrk: the files of `configs/`, known by their names."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from lrk.train.nearest import did_you_mean

LIST, PRINT = "--list_presets", "--print_preset"
# As 2409.00509, 4.1: where a preset is from stands in its file.
_CITATION = re.compile(r" \(\d{4}\.\d{5}[^)]*\)")


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


def presets_table() -> str:
    """One line for each preset: its name, and what it does."""
    names = preset_names()
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {_summary(preset(name))}" for name in names)


def what_to_type() -> str:
    """What `lrk-train` says where nothing is asked of it."""
    presets = "\n".join(f"  {line}" for line in presets_table().splitlines())
    return f"""\
lrk-train extends the context window of a pretrained model.

  lrk-train PRESET --data my-documents.jsonl --dry_run    check everything, and say what it costs
  lrk-train PRESET --data my-documents.jsonl              train
  lrk-train PRESET {PRINT}                         the preset, to begin a file of your own
  lrk-train --recipe auto --model_name_or_path MODEL --data my-documents.jsonl \\
      --target_length 131072 --output_dir outputs/mine    choose a recipe for your model
  lrk-train --help                                        all options

presets:
{presets}"""


def answer(words: Sequence[str]) -> str | None:
    """What a command line asks of presets alone: which there are, or what one says.

    Raises:
        ValueError: for an unknown preset, and for `--print_preset` without one.
    """
    if LIST in words:
        return presets_table()
    if PRINT not in words:
        return None
    named = [word for word in words if not word.startswith("-")]
    if len(named) != 1:
        raise ValueError(f"{PRINT} prints one preset: lrk-train PRESET {PRINT}; {LIST} lists them")
    return preset(named[0]).read_text(encoding="utf-8").rstrip("\n")


def _summary(file: Path) -> str:
    """The first line of a preset's comment."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return _CITATION.sub("", first).removeprefix("# ").rstrip(".")
