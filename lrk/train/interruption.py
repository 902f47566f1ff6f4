"""Stopping a run between two steps: at a signal, and for a checkpoint when one is due by time."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from lrk.command import Interrupted
from lrk.train.arguments import LrkTrainingArguments

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What a process wants after a step; of several processes the largest wish is everybody's.
_GO_ON, _SAVE, _STOP = 0, 1, 2


class Signals:
    """Holds SIGINT and SIGTERM for a block, and notes the first; the second one stops at once.

    What was ignored stays so, as SIGINT in what a script starts in the background.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            held = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
            self._before = {each: signal.signal(each, self._note) for each in held}
        return self

    def __exit__(self, *error: Any) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted(number, "stopped at once; checkpoints are intact")
        self.received = number
        name = signal.Signals(number).name
        # Not `print`, which a handler may have interrupted.
        os.write(2, f"\n{name}: this step is finished and saved; again to stop at once\n".encode())


class InterruptibleSteps(Trainer):
    """Ends a run after the step in which a signal came, with a checkpoint.

    The processes of a run decide together, by one number that is exchanged after each step and
    each batch of an evaluation.

    Attributes:
        signals: those that are held.
    """

    args: LrkTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.signals = Signals()
        self._between_steps = _BetweenSteps(self.signals)
        self.add_callback(self._between_steps)

    def get_train_dataloader(self) -> DataLoader:
        return _outliving_signals(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        return _outliving_signals(super().get_eval_dataloader(*args, **kwargs))

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationStopped:
            self._save_checkpoint(self.model, None)  # type: ignore[arg-type]
            self.control.should_evaluate = self.control.should_save = False
            self.control.should_training_stop = True

    def evaluate_at_the_end(self) -> None:
        """Evaluate unless a signal comes, or came."""
        if not self.is_stopped:
            try:
                self.evaluate()
            except EvaluationStopped:
                self._save_checkpoint(self.model, None)  # type: ignore[arg-type]

    @property
    def is_stopped(self) -> bool:
        """Whether the processes have agreed to stop."""
        return self._between_steps.stops

    def interrupted(self) -> Interrupted:
        """What to raise when the checkpoint is written."""
        number = self.signals.received or signal.SIGTERM  # of another process
        step = self.state.global_step
        folder = Path(self.args.output_dir or "") / f"checkpoint-{step}"
        after = "the same command with --resume_from_checkpoint true goes on"
        if self.args.save_only_model:
            after = "no run goes on from there, since save_only_model leaves out the optimizer"
        return Interrupted(
            number,
            f"stopped by {signal.Signals(number).name} after step {step}, which is in "
            f"{str(folder)!r}; {after}",
        )


class EvaluationStopped(Exception):
    """A signal came while the model was evaluated."""


class _BetweenSteps(TrainerCallback):
    def __init__(self, signals: Signals) -> None:
        self.stops = False
        self._signals = signals
        self._saved = time.monotonic()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        wish = self._wish(args, state)
        if wish == _STOP:
            control.should_evaluate, control.should_training_stop = False, True
        if wish != _GO_ON:
            control.should_save = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, *others: Any, **kwargs: Any
    ) -> None:
        if self._wish(args, state) == _STOP:
            raise EvaluationStopped

    def _wish(self, args: TrainingArguments, state: TrainerState) -> int:
        """What the processes agree to do."""
        assert isinstance(args, LrkTrainingArguments)
        wish = _GO_ON
        if self._signals.received is not None:
            wish = _STOP
        elif args.save_minutes and state.is_world_process_zero:
            wish = _SAVE if time.monotonic() - self._saved >= 60 * args.save_minutes else _GO_ON
        wish = largest(wish, args.device)
        self.stops = self.stops or wish == _STOP
        return wish


def _outliving_signals(loader: DataLoader) -> DataLoader:
    """Whose workers live on when a signal comes to all processes of a job.

    So send it torchrun, Slurm and the terminal; a worker that dies ends the step with an error.
    """
    workers = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
    if getattr(workers.worker_init_fn, "func", None) is not _begin_worker:
        workers.worker_init_fn = partial(_begin_worker, workers.worker_init_fn)
    return loader


def _begin_worker(begin: Callable[[int], None] | None, worker: int) -> None:
    """Only the process that has the worker may end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A blocked signal can be waited for, and then says who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if begin is not None:
        begin(worker)


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def largest(number: int, device: torch.device) -> int:
    """The largest number of all processes."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return number
    shared = torch.tensor(number, device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)
