"""What `lrk-train` says before the first step, and when the model is saved."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from lrk.hf.architectures import text_config
from lrk.train import run_folder
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.evaluations import Losses, losses_by_step
from lrk.train.steps import samples_a_step, steps_of
from lrk.train.token_plan import AnySamples, passes_described, passes_of
from lrk.train.trainer import LrkTrainer

# What `lrk-eval` is told to run: of the tasks that need no other package and no data the quickest.
_TASK = "passkey"


def beginning(trainer: LrkTrainer) -> Iterator[str]:
    """Lines: the model, its window, the tokens and the folder of a run."""
    arguments, samples = trainer.args, cast(AnySamples, trainer.train_dataset)
    config = text_config(trainer.accelerator.unwrap_model(trainer.model).config)
    steps, batch = steps_of(arguments, samples), samples_a_step(arguments)
    length = arguments.train_length
    window, now = trainer.window_before, config.max_position_embeddings
    changes = f"{window:,} -> {now:,} tokens" if now > window else f"{window:,} tokens, as before"
    yield f"Training {arguments.model_name_or_path or 'the model at hand'}"
    yield f"  window           {changes}"
    goes_on = "" if trainer.checkpoint is None else f", on from {trainer.checkpoint}"
    yield (
        f"  steps            {steps:,} of {batch:,} x {length:,} tokens, "
        f"{steps * batch * length:,} in all{goes_on}"
    )
    passes = passes_of(arguments, samples)
    if passes is not None:
        yield f"  passes           {passes_described(passes)}"
    if trainer.eval_dataset is not None and arguments.eval_on_start and not goes_on:
        yield "  first            the untouched model is evaluated"
    yield f"  folder           {arguments.output_dir}"


def ending(
    arguments: LrkTrainingArguments,
    history: Sequence[dict[str, Any]],
    base_model: str | None,
    window: int,
) -> Iterator[str]:
    """Lines: where things are, what was measured, how to evaluate and how to load.

    Args:
        history: what was logged, rows with a `step`.
        base_model: what the run began with.
        window: of that.
    """
    folder = Path(arguments.output_dir or "")
    yield f"Saved to {folder}: the model, {run_folder.MODEL_CARD_FILE}, {run_folder.METRICS_FILE}"
    by_step = losses_by_step(history)
    if len(by_step) > 1:
        before, after = by_step[min(by_step)], by_step[max(by_step)]
        yield f"  held-out loss    {'; '.join(_changes(before, after))}"
    lengths = sorted({window, arguments.target_length})
    models = [name for name in (base_model, str(folder)) if name]
    for model, when in zip(models, ("before", "after")[-len(models) :], strict=True):
        results = f"{folder}-evaluation/{when}"
        words = ["lrk-eval", "--model", model, "--tasks", _TASK]
        if arguments.gguf_file is not None and model != str(folder):
            words += ["--gguf_file", arguments.gguf_file]
        words += ["--lengths", *map(str, lengths), "--output_dir", results]
        yield f"  {f'evaluate {when}':17}{shlex.join(words)}"
    loaded = f'AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")'
    yield f"  load             {loaded}"


def _changes(before: Losses, after: Losses) -> Iterator[str]:
    for length in sorted(before.keys() & after.keys()):
        yield f"{before[length]:.4f} -> {after[length]:.4f} at {length:,}"
