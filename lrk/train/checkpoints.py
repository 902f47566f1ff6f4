"""Checkpoints that are whole or absent, and which of them a run goes on from.

transformers writes into `checkpoint-N` file by file; killed in between, it leaves a folder that it
later picks to resume from and fails on. Here the folder is written under another name and renamed.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from lrk.atomic import PREFIX, atomic_folder, remove
from lrk.train.manifest import fault, run_of, write_manifest

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(run: Path) -> dict[int, Path]:
    """Folders of checkpoints by step, smallest first; they may be damaged."""
    found = {
        int(match[1]): path
        for path in run.glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir()
    }
    return dict(sorted(found.items()))


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None. Reads all of it."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    found = fault(checkpoint)
    if found is None and run_of(checkpoint).get("save_only_model"):
        return "it holds the model alone (save_only_model), no state of the optimizer"
    return found


def rotate(run: Path, limit: int | None, keep: set[Path]) -> None:
    """Delete the checkpoints of the smallest steps until `limit` are left, but none of `keep`."""
    if not limit or limit < 0:
        return
    present = list(checkpoints(run).values())
    disposable = [path for path in present if path not in keep]
    for path in disposable[: max(0, len(present) - limit)]:
        remove(path)


class WholeCheckpoints(Trainer):
    """`transformers.Trainer` whose checkpoints appear when they are complete.

    Attributes:
        identity: what identifies the run, noted in each checkpoint.
    """

    _staging: Path | None = None
    identity: Mapping[str, Any] = {}

    @property
    def writes_checkpoint(self) -> bool:
        """Whether what is being saved is a checkpoint."""
        return self._staging is not None

    def save_state_to(self, folder: Path, trial: Any = None) -> None:
        """Write weights, optimizer, scheduler, random states and step as a checkpoint `folder`.

        Raises:
            atomic.SaveError: if it cannot be written; no folder is left then.
        """
        saves, staging = self.args.should_save, folder.with_name(PREFIX + folder.name)
        whole: AbstractContextManager[Any] = nullcontext()
        if saves:
            whole = atomic_folder(folder, staging)
        with whole:
            self._staging = staging
            # Every process writes its random state into the folder that the first one makes.
            self.accelerator.wait_for_everyone()
            try:
                super()._save_checkpoint(self.model, trial)  # type: ignore[arg-type]
            finally:
                written = self._staging / f"checkpoint-{self.state.global_step}"
                self._staging = None
            self.accelerator.wait_for_everyone()
            self._name_best_checkpoint(written, folder)
            if saves:
                for file in written.iterdir():
                    file.rename(written.parent / file.name)
                written.rmdir()
                only = {"save_only_model": self.args.save_only_model}
                write_manifest(staging, {**self.identity, **only})
        self.accelerator.wait_for_everyone()

    def _name_best_checkpoint(self, written: Path, folder: Path) -> None:
        """The state has noted the name under which the best checkpoint was being written."""
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(folder)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        self.save_state_to(folder, trial)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(folder))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run, self.args.save_total_limit, {folder, Path(best or folder)})

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not while the checkpoint has a temporary name: `_save_checkpoint` does it afterwards."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """transformers would take one more step where the last one of a run is resumed from.

        Of a stream it would also begin epochs for ever.
        """
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in transformers, but a run is the same with it and without: randomness is put back."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            return super().evaluate(*args, **kwargs)
