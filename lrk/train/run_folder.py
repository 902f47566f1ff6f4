"""The output folder of a run: what it holds, and whether a new run may write there."""

import logging
from pathlib import Path

from lrk.atomic import remove
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.checkpoints import checkpoints, damage
from lrk.train.identity import check_settings
from lrk.weight_index import INDEX

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
LOSS_CURVE_FILE = "loss.png"
ENVIRONMENT_FILE = "environment.json"
MODEL_CARD_FILE = "README.md"
ADAPTER_FOLDER = "adapter"

# Checkpoints stand first: what is left of a run whose deletion is interrupted cannot be resumed.
_RUN_FILES = (
    "checkpoint-*",
    "not-finite-*",
    CONFIG_FILE,
    METRICS_FILE,
    LOSS_CURVE_FILE,
    ENVIRONMENT_FILE,
    ADAPTER_FOLDER,
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    INDEX,
)

logger = logging.getLogger(__name__)


def check(arguments: LrkTrainingArguments) -> str | None:
    """The checkpoint to resume from, or None to begin at the first step.

    `resume_from_checkpoint` is a folder, `true` (the newest whole checkpoint of `output_dir`; the
    first step if the run was stopped before there was one) or `auto` (as `true` where `output_dir`
    holds a run, a new run where it does not).

    Raises:
        ValueError: if the output folder holds another run, or none to resume, or the checkpoint
            is damaged or of a run with other arguments.
    """
    folder = Path(arguments.output_dir or "")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {str(folder)!r} is a file")
    choice = (arguments.resume_from_checkpoint or "false").lower()
    checkpoint = None
    if choice == "true" or (choice == "auto" and contents(folder)):
        checkpoint = _newest_whole(folder)
    elif choice not in ("false", "auto"):
        checkpoint = Path(arguments.resume_from_checkpoint or "")
        if (fault := damage(checkpoint)) is not None:
            raise ValueError(
                f"resume_from_checkpoint {str(checkpoint)!r} is not a whole checkpoint: {fault}"
            )
    continues = choice in ("true", "auto") or (
        checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    )
    if not continues and not arguments.overwrite_output_dir and (held := work(folder)):
        raise ValueError(
            f"output_dir {str(folder)!r} holds another run ({held[0].name}): choose "
            "another folder, resume_from_checkpoint true, or overwrite_output_dir"
        )
    if checkpoint is None:
        return None
    check_settings(checkpoint, arguments)
    return str(checkpoint)


def clear(arguments: LrkTrainingArguments) -> None:
    """Delete what an earlier run wrote, if `overwrite_output_dir`; other files stay."""
    if arguments.overwrite_output_dir:
        for path in contents(Path(arguments.output_dir or "")):
            remove(path)


def contents(folder: Path) -> list[Path]:
    """What a run has written there."""
    return [path for pattern in _RUN_FILES for path in sorted(folder.glob(pattern))]


def work(folder: Path) -> list[Path]:
    """What a run has written there, if it came to a step: one that did not has nothing to lose.

    A configuration without the record that is written before it may be somebody's own.
    """
    held = contents(folder)
    metrics = folder / METRICS_FILE
    began = metrics.is_file() and metrics.stat().st_size > 0
    names = {path.name for path in held}
    is_ours = ENVIRONMENT_FILE in names and names <= {CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE}
    return [] if is_ours and not began else held


def _newest_whole(folder: Path) -> Path | None:
    faults: list[str] = []
    for path in reversed(checkpoints(folder).values()):
        fault = damage(path)
        if fault is None:
            return path
        logger.warning("%s is passed over: %s", path, fault)
        faults.append(f"{path.name}: {fault}")
    if faults:
        raise ValueError(
            f"output_dir {str(folder)!r} holds no whole checkpoint to resume from ({faults[0]}); "
            "without its checkpoints it begins at its first step"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"output_dir {str(folder)!r} holds no run to resume")
    if finished := sorted(folder.glob("model*.safetensors")):
        raise ValueError(
            f"output_dir {str(folder)!r} holds a finished run ({finished[0].name}) and no whole "
            "checkpoint to resume from"
        )
    logger.warning("%s holds no whole checkpoint: the run begins at its first step", folder)
    return None
