"""Training by `lrk-train`, for as many steps as fit into a time that was measured before."""

from pathlib import Path
from typing import Any

from lrk.atomic import remove
from lrk.train.command import main as lrk_train
from lrk.train.run_folder import METRICS_FILE
from lrk.train.telemetry import read_metrics
from studies.real_model.models import Model
from studies.real_model.pretrained import UNTOUCHED
from studies.real_model.product import call
from studies.real_model.scale import Scale
from studies.real_model.texts import TRAINING

CALIBRATION_STEPS = 3
CHECKPOINT_SECONDS = 300
"""Of training between two checkpoints: one of this model with its optimizer has 1.6 GB."""
LEARNING_RATE = 2e-4
WARMUP_SHARE = 0.05
FEW_STEPS = 40
"""Below which there is no warm-up: transformers begins one at a rate of 0."""


def steps_for(seconds: float, step_seconds: float) -> int:
    """As many as come closest to the time; at least one."""
    return max(1, round(seconds / step_seconds))


def is_trained(folder: Path) -> bool:
    """Whether a run is finished: the model is written last, at once."""
    return (folder / "model.safetensors").exists()


def calibrate(study: Path, model: Model, scale: Scale, device: str) -> dict[str, Any]:
    """Take a few real steps.

    Returns:
        `step_seconds`, of each.
    """
    folder = study / "calibration"
    words = _words(study, folder, model, scale, device, CALIBRATION_STEPS)
    call(lrk_train, [*words, "--save_strategy", "no", "--overwrite_output_dir", "true"])
    found = telemetry(folder, model, scale)
    remove(folder)
    return {"step_seconds": found["step_seconds"]}


def train(
    study: Path,
    folder: Path,
    model: Model,
    scale: Scale,
    seed: int,
    device: str,
    steps: int,
    step_seconds: float,
) -> None:
    """Train a model into `folder`, or go on from what a killed start has left there."""
    words = _words(study, folder, model, scale, device, steps)
    words += ["--seed", str(seed), "--resume_from_checkpoint", "auto"]
    often = max(1, int(CHECKPOINT_SECONDS / step_seconds))
    if often < steps:
        words += ["--save_steps", str(often), "--save_total_limit", "1"]
    else:
        words += ["--save_strategy", "no"]
    call(lrk_train, words)


def telemetry(folder: Path, model: Model, scale: Scale) -> dict[str, Any]:
    """What a run itself says of its steps."""
    rows = [row for row in read_metrics(folder / METRICS_FILE) if "tokens_per_second" in row]
    tokens = model.sample_tokens(scale) * model.samples_a_step(scale)
    return {
        "sample_tokens": model.sample_tokens(scale),
        "steps": len(rows),
        "tokens": tokens * len(rows),
        "step_seconds": [tokens / row["tokens_per_second"] for row in rows],
        "step_losses": [row["loss"] for row in rows],
        "peak_memory_gib": max(row["peak_memory_gib"] for row in rows),
    }


def _words(
    study: Path, folder: Path, model: Model, scale: Scale, device: str, steps: int
) -> list[str]:
    return [
        *("--model_name_or_path", str(study / UNTOUCHED)),
        *("--data", str(study / TRAINING)),
        *("--pack", "false"),  # The end of the one text fills no sample.
        *("--output_dir", str(folder)),
        *("--target_length", str(scale.target)),
        *model.training(scale),
        *("--contiguous_share", "0.3"),
        *("--max_steps", str(steps)),
        *("--learning_rate", str(LEARNING_RATE)),
        *("--lr_scheduler_type", "cosine"),
        *("--warmup_steps", str(0 if steps < FEW_STEPS else round(WARMUP_SHARE * steps))),
        *("--weight_decay", "0.1"),
        *("--use_cpu", str(device == "cpu").lower()),
        *("--report_to", "none"),
    ]
