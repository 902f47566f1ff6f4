"""The output folder of a run: what it holds, and whether a new run may write there."""

import re
import shutil
from pathlib import Path

from lrk.train.arguments import LrkTrainingArguments

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
LOSS_CURVE_FILE = "loss.png"
ADAPTER_FOLDER = "adapter"

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STATE_FILE = "trainer_state.json"
_RUN_FILES = (
    CONFIG_FILE,
    METRICS_FILE,
    LOSS_CURVE_FILE,
    ADAPTER_FOLDER,
    "checkpoint-*",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)


def check(arguments: LrkTrainingArguments) -> str | None:
    """The checkpoint to resume from, or None for a new run.

    Raises:
        ValueError: if the output folder holds another run, or no whole checkpoint to resume from.
    """
    folder = Path(arguments.output_dir or "")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {str(folder)!r} is a file")
    checkpoint = _checkpoint(arguments.resume_from_checkpoint, folder)
    continues = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if not continues and not arguments.overwrite_output_dir and _contents(folder):
        raise ValueError(
            f"output_dir {str(folder)!r} holds another run ({_contents(folder)[0].name}): choose "
            "another folder, resume_from_checkpoint true, or overwrite_output_dir"
        )
    return None if checkpoint is None else str(checkpoint)


def clear(arguments: LrkTrainingArguments) -> None:
    """Delete what an earlier run wrote, if `overwrite_output_dir`; other files stay."""
    if not arguments.overwrite_output_dir:
        return
    for path in _contents(Path(arguments.output_dir or "")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _contents(folder: Path) -> list[Path]:
    return [path for pattern in _RUN_FILES for path in sorted(folder.glob(pattern))]


def _checkpoint(choice: str | None, folder: Path) -> Path | None:
    if choice is None or choice.lower() == "false":
        return None
    if choice.lower() != "true":
        if not (Path(choice) / _STATE_FILE).is_file():
            raise ValueError(f"resume_from_checkpoint {choice!r} is not a whole checkpoint")
        return Path(choice)
    # transformers writes the state file last: a folder without one was cut short.
    steps = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(path.name)) and (path / _STATE_FILE).is_file()
    }
    if not steps:
        raise ValueError(f"output_dir {str(folder)!r} holds no whole checkpoint to resume from")
    return steps[max(steps)]
