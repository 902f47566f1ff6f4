"""Samples that several processes share: each computes the loss of some of their tokens.

transformers would let accelerate's context parallelism into its steps, which takes PyTorch's
attention alone, drops every mask and refuses windows. Of accelerate this takes the device mesh: a
loader that gives the processes of a group the same samples, and FSDP2 over all of them.
"""

from contextlib import nullcontext
from typing import Any

import accelerate
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import Trainer

from lrk.hf.base_model import LrkBaseModel
from lrk.hf.sequence_split import split_batch
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.finite import FiniteSteps

_STEP, _PREPARE = "_prepare_context_parallel_inputs", "_prepare_cp"


class SequenceParallelSteps(FiniteSteps):
    """Deals samples out where `sequence_parallel` is more than 1.

    Batches stay whole up to `compute_loss`, so what looks at samples before it (weights of tokens,
    the batch that is saved at a NaN, counts) sees all their tokens.

    Attributes:
        sequence_group: the processes that share this one's samples; None if no others do.

    Raises:
        ValueError: for a model that is not patched, and for releases of transformers and accelerate
            that have not what is replaced here.
    """

    args: LrkTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.model, nn.Module)
        patched = any(isinstance(module, LrkBaseModel) for module in self.model.modules())
        if self.sequence_group is not None and not patched:
            raise ValueError(
                f"sequence_parallel is {self.args.sequence_parallel} and the model is not patched: "
                "leave kernels.attention true, or lrk.patch(model)"
            )

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.sequence_group: dist.ProcessGroup | None = None
        if self.engine.sequence_parallel > 1:
            _check_releases(self.engine.sequence_parallel)
            self.accelerator._prepare_cp = _as_they_are
            self.sequence_group = self.accelerator.torch_device_mesh["cp"].get_group()

    def _prepare_context_parallel_inputs(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        return nullcontext, inputs

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self.sequence_group is not None:
            inputs = split_batch(inputs, self.sequence_group)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """The loss is that of the whole batch in all processes that share it."""
        if self.sequence_group is not None and not prediction_loss_only:
            raise ValueError(
                f"sequence_parallel is {self.engine.sequence_parallel}, and each process would "
                "have the logits of its own tokens: evaluate with prediction_loss_only"
            )
        result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        loss = result[0]
        if self.sequence_group is not None and loss is not None:
            dist.all_reduce(loss, group=self.sequence_group)
            self._keep_all_that_share()
        return result

    def _keep_all_that_share(self) -> None:
        """Of the last batches as many losses are kept as there are samples left.

        accelerate counts one process a sample. The losses of all are gathered by rank, so those of
        a sample lie side by side.
        """
        state = self.accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0:
            state.active_dataloader.remainder *= self.engine.sequence_parallel

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """transformers adds up all processes."""
        before = self.state.num_input_tokens_seen
        super()._track_num_input_tokens(inputs)
        seen = self.state.num_input_tokens_seen - before
        self.state.num_input_tokens_seen = before + seen // self.engine.sequence_parallel


def _check_releases(number: int) -> None:
    for owner, name, package in (
        (Trainer, _STEP, transformers),
        (Accelerator, _PREPARE, accelerate),
    ):
        if not hasattr(owner, name):
            raise ValueError(
                f"sequence_parallel is {number}, but {owner.__name__} of {package.__name__} "
                f"{package.__version__} has no {name}, in whose place lrk deals samples out: "
                "use an older release of it"
            )


def _as_they_are(*prepared: Any) -> tuple[Any, ...]:
    """In the place of accelerate's hooks, which drop masks and refuse windows."""
    return prepared
