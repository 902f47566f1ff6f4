"""Model and optimizer in a checkpoint of FSDP2: one state dict each, or a shard of each process.

Files and formats are those of accelerate; shards are those of torch.distributed.checkpoint. Of a
model with adapters they hold what is trained. (Of accelerate's own, some releases load neither
adapters nor the sharded state of an optimizer again, without a word.)
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as shards
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from lrk.train.collective import raised_by_all

MODEL, OPTIMIZER = "pytorch_model_fsdp", "optimizer"


def save_model(model: nn.Module, checkpoint: Path, full: bool) -> None:
    """Write the model into the folder; a collective.

    Args:
        full: as one state dict, by the main process, which holds all of it meanwhile.
    """
    _save(
        {"model": get_model_state_dict(model, options=_written(model, full))},
        checkpoint / MODEL,
        full,
    )


def save_optimizer(model: nn.Module, optimizer: Optimizer, checkpoint: Path, full: bool) -> None:
    """As `save_model`."""
    state = get_optimizer_state_dict(model, optimizer, options=_written(model, full))
    _save({"optimizer": state}, checkpoint / OPTIMIZER, full)


def load_model(model: nn.Module, checkpoint: Path) -> None:
    """Read the model of any number of processes; a collective."""
    path = checkpoint / MODEL
    now = get_model_state_dict(model, options=_written(model, False))
    state = _loaded("model", path, now)
    set_model_state_dict(model, state, options=_read(path))


def load_optimizer(model: nn.Module, optimizer: Optimizer, checkpoint: Path) -> None:
    """As `load_model`."""
    path = checkpoint / OPTIMIZER
    now = get_optimizer_state_dict(model, optimizer, options=_written(model, False))
    state = _loaded("optimizer", path, now)
    set_optimizer_state_dict(model, optimizer, state, options=_read(path))


def _save(state: dict[str, Any], path: Path, full: bool) -> None:
    """`path.bin` holds the value, `path_0` its shards under the key."""
    if not full:
        shards.save(state, checkpoint_id=_folder(path))
    elif torch.distributed.get_rank() == 0:
        (value,) = state.values()
        torch.save(value, _file(path))


def _loaded(key: str, path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """A state dict: in the main process alone if it is full.

    Args:
        now: what it replaces, whose names it must have (shards are read by them).

    Raises:
        ValueError: in every process, if it has not.
    """
    if not _file(path).is_file():
        shards.load({key: now}, checkpoint_id=_folder(path))
        return now
    found: dict[str, Any] = {}
    with raised_by_all():
        if torch.distributed.get_rank() == 0:
            found = torch.load(_file(path), map_location="cpu", weights_only=True)
            if missing := sorted(_names(now) - _names(found)):
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise ValueError(f"{str(_file(path))!r} has no {missing[0]}{more} of this model")
    return found


def _names(state: dict[str, Any]) -> set[str]:
    """Of parameters; an optimizer has its options beside them."""
    return set(state.get("state", state))


def _written(model: nn.Module, full: bool) -> StateDictOptions:
    trained = isinstance(model, PeftModel)
    return StateDictOptions(full_state_dict=full, cpu_offload=True, ignore_frozen_params=trained)


def _read(path: Path) -> StateDictOptions:
    full = _file(path).is_file()
    return StateDictOptions(full_state_dict=full, broadcast_from_rank0=full, strict=False)


def _file(path: Path) -> Path:
    return path.with_name(f"{path.name}.bin")


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}_0")
