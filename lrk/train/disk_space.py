"""What a run writes, beside the space of its output folder."""

import math
import shutil
from pathlib import Path

import torch
from transformers import PretrainedConfig

from lrk.plan.settings import LOW_BIT
from lrk.pretrained import meta_model
from lrk.train import run_folder
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.engine import FSDP2, engine_of
from lrk.train.pretrained import stored_dtype

GIB = 2**30

# Moments of a parameter. Of others little is known, so nothing is counted.
_MOMENTS = {"adamw_torch": 2, "adamw_torch_fused": 2, **dict.fromkeys(LOW_BIT, 2)}


def check_disk_space(arguments: LrkTrainingArguments, config: PretrainedConfig, steps: int) -> str:
    """Compare the model and the checkpoints of a run with the free bytes of `output_dir`.

    What the folder holds of a run is counted as free: it is overwritten, or part of this one. Of
    adapters, which are small, and of optimizers that are not known, nothing is counted, so that
    what is refused cannot fit.

    Args:
        steps: of the run.

    Returns:
        A line that says both.

    Raises:
        ValueError: if it does not fit, but for a dry run for the GPU of another machine (`gpu`),
            whose disk is another one too.
    """
    folder = Path(arguments.output_dir or "").expanduser().absolute()
    nearest = next(each for each in (folder, *folder.parents) if each.is_dir())
    free = shutil.disk_usage(nearest).free + _size(run_folder.contents(folder))
    model, checkpoint = _bytes(arguments, config)
    count = _checkpoints(arguments, steps)
    needed = model + count * checkpoint
    told = (
        f"{needed / GIB:,.2f} GiB: the model, {model / GIB:,.2f}, and "
        f"{count:,} checkpoints of {checkpoint / GIB:,.2f} at a time"
    )
    if needed > free and arguments.dry_run and arguments.gpu is not None:
        return f"{told}; NO: {free / GIB:,.2f} are free on this machine"
    if needed > free:
        raise ValueError(
            f"output_dir {arguments.output_dir!r} has {free / GIB:,.2f} GiB left, but the run "
            f"writes {told}: choose another folder, or set save_total_limit or save_only_model"
        )
    return f"{told}; {free / GIB:,.2f} are free"


def checkpoint_interval(arguments: LrkTrainingArguments) -> str:
    """When checkpoints are written, and how many are kept, in words."""
    strategy = str(arguments.to_dict()["save_strategy"])
    if strategy == "no" and not arguments.save_minutes:
        return "none"
    steps = arguments.save_steps
    often = {
        "no": "",
        "steps": f"every {steps:,.0f} steps" if steps >= 1 else f"every {steps:.0%} of the run",
        "epoch": "after every epoch",
        "best": "after every evaluation that is the best one",
    }[strategy]
    minutes = f"every {arguments.save_minutes:g} minutes" if arguments.save_minutes else ""
    limit = arguments.save_total_limit
    kept = "all are kept" if limit is None else f"the newest {limit:,} are kept"
    return f"{' and '.join(filter(None, (often, minutes)))}; {kept}"


def _bytes(arguments: LrkTrainingArguments, config: PretrainedConfig) -> tuple[int, int]:
    """Of the final model, and of a checkpoint."""
    parameters = sum(parameter.numel() for parameter in meta_model(config).parameters())
    element = stored_dtype(arguments, config).itemsize
    if arguments.lora_rank:
        return parameters * element, 0
    optim = str(arguments.to_dict()["optim"])
    moments = 0 if arguments.save_only_model else _MOMENTS.get(optim, 0)
    engine, kept = engine_of(arguments), element
    if engine.name == FSDP2 and (arguments.bf16 or arguments.fp16):
        kept = torch.float32.itemsize  # what accelerate trains there
    # Beside its state dict a full one has the model as transformers reads it.
    copies = 2 if engine.name == FSDP2 and not engine.shards_checkpoints else 1
    state = moments * LOW_BIT.get(optim, kept)
    return parameters * element, int(parameters * (copies * kept + state))


def _checkpoints(arguments: LrkTrainingArguments, steps: int) -> int:
    """How many lie there at a time; one is written before the oldest is removed."""
    every = arguments.save_steps if arguments.save_steps >= 1 else arguments.save_steps * steps
    written = {
        "no": 0,
        "steps": steps / math.ceil(every),
        "epoch": arguments.num_train_epochs if arguments.max_steps <= 0 else 1,
        "best": 1,
    }[str(arguments.to_dict()["save_strategy"])]
    # At the last step there is one too.
    most = math.ceil(written)
    limit = arguments.save_total_limit
    return most if limit is None else min(most, limit + 1)


def _size(paths: list[Path]) -> int:
    return sum(
        file.stat().st_size
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )
