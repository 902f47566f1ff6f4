"""The output folder of a run: what it holds, and whether a new run may write there."""

import logging
import os
import time
from pathlib import Path
from tempfile import mkstemp

from lrk.atomic import PREFIX, remove
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.checkpoints import check_engine, checkpoints, damage
from lrk.train.collective import done_by_main, of_all, place
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

# A network file system may show another node's file late.
_PATIENCE_S = 30.0

logger = logging.getLogger(__name__)


def check_together(arguments: LrkTrainingArguments) -> str | None:
    """`check` by the main process for all, and that all have the same folder; a collective.

    Raises:
        ValueError: in every process, as `check` and `check_shared`.
    """
    check_shared(arguments)
    return done_by_main(lambda: check(arguments))


def check_shared(arguments: LrkTrainingArguments) -> None:
    """Find out whether all processes see what the main one writes into the output folder.

    Raises:
        ValueError: if some do not.
    """
    if arguments.world_size == 1:
        return
    folder = Path(arguments.output_dir or "")
    sign = done_by_main(lambda: _new_file(folder))
    blind = of_all(None if _appears(folder, sign) else place())
    if arguments.process_index == 0:
        (folder / sign).unlink(missing_ok=True)
    if named := [each for each in blind if each]:
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise ValueError(
            f"output_dir {arguments.output_dir!r} is not one folder for all processes: what "
            f"process 0 writes there is not seen by {', '.join(named[:3])}{more}; put it on a file "
            "system that all nodes share"
        )


def _new_file(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, path = mkstemp(prefix=PREFIX, dir=folder)
    os.close(descriptor)
    return Path(path).name


def _appears(folder: Path, name: str) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    # To list a folder asks its server, to look for a file may be answered from a cache.
    while not (folder.is_dir() and name in os.listdir(folder)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


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
    check_engine(checkpoint, arguments)
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
