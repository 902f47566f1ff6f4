"""Stopping before a gradient that is not finite reaches the weights."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from lrk.atomic import atomic_file
from lrk.command import RunError
from lrk.train.checkpoints import WholeCheckpoints
from lrk.train.interruption import InterruptibleSteps, largest

BATCH_FILE = "batch-{rank}.safetensors"
SHOWN_SAMPLES = 8
SAMPLE_INDICES = "sample_indices"


class NotFiniteError(RunError):
    """A gradient or a weight was NaN or infinite; it is in nothing that was saved."""


class FiniteSteps(InterruptibleSteps, WholeCheckpoints):
    """Raises `NotFiniteError` in place of an optimizer step with a gradient that is not finite.

    The state of the step before is then in `not-finite-N` of the output folder, under a name that
    resuming takes only if it is asked to, together with the samples of the step.

    It costs one read of a number from the device a step: the gradient norm, which transformers
    reads for its log. With `logging_steps` 1 (the default here) it is read as often as before, only
    before the step instead of after it. In float16 overflowing gradients are part of loss scaling,
    which leaves such steps out itself; there the loss is read in place of the norm.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the step that is being accumulated.
        self._batches: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        # Also where `auto_find_batch_size` has given up a step that did not fit.
        self._batches, self._losses = [], []
        return super().get_batch_samples(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        self._batches.append(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        loss = torch.stack(self._losses).sum()
        scales_loss = self.accelerator.scaler is not None
        decisive = float(self.accelerator.reduce(loss, "mean")) if scales_loss else norm
        if not math.isfinite(decisive):
            self._stop(float(self.accelerator.reduce(loss, "mean")), norm)
        return norm

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the model takes: the indices of the samples are for `_stop`."""
        taken = {name: value for name, value in inputs.items() if name != SAMPLE_INDICES}
        return super()._prepare_inputs(taken)

    def check_weights(self) -> None:
        """Refuse to save weights that are not finite: one pass over them, one number read.

        Raises:
            NotFiniteError: in all processes, where one of them has such a weight.
        """
        model = self.accelerator.unwrap_model(self.model)
        bad = [] if _are_finite(model.parameters()) else _not_finite(model)
        if largest(len(bad), self.args.device):
            named = f" ({bad[0]} and {len(bad) - 1} more)" if bad else ""
            raise NotFiniteError(
                f"step {self.state.global_step} made weights that are not finite{named}, so they "
                "are not saved; checkpoints before it are intact: go on from one of them, or with "
                f"a smaller learning_rate (it is {self.args.learning_rate:g})"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_weights()
        super()._save_checkpoint(model, trial)

    def _stop(self, loss: float, norm: float) -> None:
        self.check_weights()
        step = self.state.global_step + 1
        folder = Path(self.args.output_dir or "") / f"not-finite-{step}"
        self.save_state_to(folder)
        tensors = step_tensors(self._batches)
        with atomic_file(folder / BATCH_FILE.format(rank=self.args.process_index)) as path:
            save_file(tensors, path)
        samples = tensors["sample_index"].tolist()
        more = f" and {len(samples) - SHOWN_SAMPLES} more" if len(samples) > SHOWN_SAMPLES else ""
        raise NotFiniteError(
            f"step {step} has loss {loss:.4g} and gradient norm {norm:.4g}, so it was "
            f"not taken; its batch (samples {', '.join(map(str, samples[:SHOWN_SAMPLES]))}{more}) "
            f"and the state before it are in {str(folder)!r}"
        )


def _are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all that are trained are, of each what this process holds of it."""
    held = [local for each in parameters if each.requires_grad and (local := _local(each)).numel()]
    # The largest magnitude is NaN where an element is.
    return bool(get_total_norm(held, math.inf).isfinite()) if held else True


def _not_finite(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_parameters() if not _are_finite([each])]


def _local(parameter: nn.Parameter) -> Tensor:
    # ZeRO-3 leaves an empty parameter, and its part beside it.
    tensor = getattr(parameter, "ds_tensor", parameter).detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def step_tensors(batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The N samples of a step, from its batches.

    Returns:
        `input_ids`, `position_ids`, `labels` and `document` (N, S) int64, the last counting the
        documents of the step from 0; `sample_index` (N,) int64.
    """
    rows: dict[str, list[Tensor]] = {}
    documents = 0
    for batch in batches:
        for name in ("input_ids", "position_ids", "labels"):
            rows.setdefault(name, []).append(batch[name].cpu())
        ends = batch["cu_seq_lens_q"].cpu().long()
        of_token = torch.arange(len(ends) - 1).repeat_interleave(ends.diff()) + documents
        documents += len(ends) - 1
        rows.setdefault("document", []).append(of_token.view_as(batch["input_ids"]))
        rows.setdefault("sample_index", []).append(torch.tensor(batch[SAMPLE_INDICES]))
    return {name: torch.cat(parts).contiguous() for name, parts in rows.items()}
