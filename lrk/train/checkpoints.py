"""Checkpoints that are whole or absent, and which of them a run goes on from.

transformers writes into `checkpoint-N` file by file; killed in between, it leaves a folder that it
later picks to resume from and fails on. Here the folder is written under another name and renamed,
when every process has written its part.

FSDP2 writes one state dict or its processes' shards of it (torch.distributed.checkpoint); either is
resumed on any number of processes, whichever the run writes itself. DeepSpeed reads what as many
processes of the same stage of ZeRO wrote.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import FSDPModule, StateDictType
from transformers import Trainer
from transformers.trainer import (
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
)

from lrk.atomic import PREFIX, atomic_folder, remove
from lrk.train import fsdp_checkpoint
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.collective import raised_by_all, wait_for_all
from lrk.train.engine import DDP, ONE_PROCESS, Engine, engine_of
from lrk.train.gathering import loaded_dtypes
from lrk.train.manifest import fault, run_of, write_manifest

logger = logging.getLogger(__name__)

# What a checkpoint notes of the processes that wrote it.
_ENGINE, _PROCESSES = "engine", "processes"
_ALIKE = (ONE_PROCESS, DDP)

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


def check_engine(checkpoint: Path, arguments: LrkTrainingArguments) -> None:
    """Raise `ValueError` if the run's engine cannot read what another one has written."""
    written, now = run_of(checkpoint), engine_of(arguments)
    name, processes = written.get(_ENGINE, now.name), written.get(_PROCESSES, now.processes)
    said = f"resume_from_checkpoint {str(checkpoint)!r} was written by {name}"
    if name != now.name and not (name in _ALIKE and now.name in _ALIKE):
        raise ValueError(f"{said}, whose format {now.name} cannot read: go on with {name}")
    if now.is_deepspeed and processes != now.processes:
        raise ValueError(
            f"{said} with {processes} processes, and there are {now.processes} now: DeepSpeed goes "
            f"on with {processes} (FSDP2 and DDP go on with any number)"
        )


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
        dtypes: of the model's parameters by name, as they were loaded.
        was_gathered: whether `model` is whole, out of the parts that the engine had.
    """

    args: LrkTrainingArguments
    model: nn.Module
    optimizer: Any
    lr_scheduler: Any
    _staging: Path | None = None
    _fault: BaseException | None = None
    identity: Mapping[str, Any] = {}
    was_gathered = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dtypes = loaded_dtypes(self.model, self.engine)

    @cached_property
    def engine(self) -> Engine:
        """How the run is spread."""
        return engine_of(self.args)

    @property
    def writes_checkpoint(self) -> bool:
        """Whether what is being saved is a checkpoint."""
        return self._staging is not None

    def save_state_to(self, folder: Path, trial: Any = None) -> None:
        """Write weights, optimizer, scheduler, random states and step as a checkpoint `folder`.

        Raises:
            atomic.SaveError: if it cannot be written; no folder is left then.
        """
        staging = folder.with_name(PREFIX + folder.name)
        written = staging / f"checkpoint-{self.state.global_step}"
        with ExitStack() as whole:
            with raised_by_all():
                if self.args.should_save:
                    whole.enter_context(atomic_folder(folder, staging))
            # Every process writes its part into the folder that the first one made.
            self._staging, self._fault = staging, None
            try:
                with raised_by_all():
                    super()._save_checkpoint(self.model, trial)  # type: ignore[arg-type]
                    if self._fault is not None:
                        raise self._fault
            finally:
                self._staging = None
            with raised_by_all():
                self._name_best_checkpoint(written, folder)
                if self.args.should_save:
                    self._complete(written)
                    whole.close()

    def _complete(self, written: Path) -> None:
        """Move what was written up to where the checkpoint will be, and note what it is."""
        for file in written.iterdir():
            file.rename(written.parent / file.name)
        written.rmdir()
        of = {_ENGINE: self.engine.name, _PROCESSES: self.engine.processes}
        only = {"save_only_model": self.args.save_only_model}
        write_manifest(written.parent, {**self.identity, **of, **only})

    @contextmanager
    def _raised_later(self) -> Iterator[None]:
        """Go on after a failed write: the next part of a checkpoint is gathered from all processes,
        and one that had stopped would leave the others waiting for it."""
        try:
            yield
        # PyTorch and safetensors report a failed write as errors of their own.
        except (OSError, RuntimeError, SafetensorError) as error:
            self._fault = self._fault or error
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            self._fault = self._fault or OSError(str(first))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """transformers would ask the engine, which has nothing to add to a model that is whole."""
        if not self.was_gathered:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self._raised_later() if self.writes_checkpoint else nullcontext():
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            with self._raised_later():
                super()._save_optimizer_and_scheduler(output_dir)
            return
        kind = self.accelerator.state.fsdp_plugin.state_dict_type
        folder, full = Path(output_dir), kind == StateDictType.FULL_STATE_DICT
        # The main process may have written for longer than a collective of the engine waits.
        wait_for_all()
        with self._raised_later():
            fsdp_checkpoint.save_model(self.model, folder, full)
        wait_for_all()
        with self._raised_later():
            fsdp_checkpoint.save_optimizer(self.model, self.optimizer, folder, full)
        with self._raised_later():
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled:
            fsdp_checkpoint.load_model(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self.is_fsdp_enabled and best is not None:
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        fsdp_checkpoint.load_optimizer(self.model, self.optimizer, Path(checkpoint))
        scheduler = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None or not self.is_world_process_zero():
            return
        written, now = run_of(Path(checkpoint)).get(_PROCESSES), self.engine.processes
        if written not in (None, now):
            logger.warning(
                "%s is of %d processes and goes on with %d: dropout draws other random numbers "
                "than it would have; samples and positions stay the same",
                checkpoint,
                written,
                now,
            )

    def _name_best_checkpoint(self, written: Path, folder: Path) -> None:
        """transformers notes the folder that is being written, in processes that find it there.

        With a sharded model some come before it is made, and would load parts of another one.
        """
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        self.save_state_to(folder, trial)
        with raised_by_all():
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
        is_early = self.is_fsdp_enabled and not isinstance(self.model, FSDPModule)
        if is_early:
            self._shard()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            metrics = super().evaluate(*args, **kwargs)
        if is_early:
            self._free_gathered()
        return metrics

    def _shard(self) -> None:
        """As before training: accelerate shards a model together with its optimizer alone."""
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.create_optimizer())
        self.model_wrapped = self.model

    def _free_gathered(self) -> None:
        """What a forward pass leaves gathered: training would begin with that in its optimizer."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
