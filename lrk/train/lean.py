"""Steps that hold less in device memory: how a run's arguments choose among lrk's techniques."""

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from lrk.memory import checkpointing
from lrk.memory.host_optimizer import HostOptimizer
from lrk.memory.offload import HostCopies
from lrk.memory.step_in_backward import StepInBackward
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.finite import FiniteSteps, NotFiniteError


class LeanSteps(FiniteSteps):
    """Does what `keep_attention`, `offload_activations`, `layers_per_checkpoint`,
    `offload_optimizer` and `optimizer_in_backward` say. (`tile_tokens` is for `lrk.patch`.)"""

    args: LrkTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_backward: StepInBackward | None = None
        if self.args.own_checkpointing:
            self.add_callback(_Checkpointing)

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(*args)
        if self.args.offload_optimizer:
            optimizer = HostOptimizer(optimizer)
        if self.args.optimizer_in_backward:
            self._in_backward = StepInBackward(optimizer)
        self.optimizer = optimizer
        return optimizer

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        if self._in_backward is not None:
            # The gradients are gone, and a bad one is in the weights.
            grad_norm = self._in_backward.take_norm()
            if not math.isfinite(grad_norm):
                raise NotFiniteError(
                    f"step {self.state.global_step + 1} has gradient norm {float(grad_norm):.4g}, "
                    "and optimizer_in_backward has applied it already: resume from a checkpoint"
                )
        return super()._get_grad_norm(model, grad_norm=grad_norm)


class _Checkpointing(TrainerCallback):
    """lrk's checkpointing in place of transformers', which the trainer switches on before this."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        assert isinstance(args, LrkTrainingArguments)
        copies = HostCopies() if args.offload_activations else None
        checkpointing.enable(
            kwargs["model"], args.keep_attention, copies, args.layers_per_checkpoint
        )
