"""Self-distillation: a run learns, beside its labels, what a teacher predicts.

- `views`: the teacher is the model itself, in the same step and without gradient, that reads the
  same tokens in ordinary positions; the student reads them in those that the recipe drew. So the
  model learns to predict alike wherever its context stands. The idea is that of RoPE-perturbed
  self-distillation (arXiv 2604.14339), which moves parts of a text to other indices; here the
  perturbation is that of the recipe, and the unperturbed view is the teacher.
- `original`: the teacher is the model that the run starts from, frozen, with its own RoPE. Each
  sample gets a second, short document: a cut of its own tokens in ordinary positions. On this alone
  the two are compared; its tokens are no labels. So the model keeps what it predicted on short
  contexts, for which LongRecipe (arXiv 2409.00509) replays short texts.

The loss is that of `lrk.hf.distillation`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lrk.hf import patch
from lrk.hf.distillation import (
    NONE,
    ORIGINAL,
    Distillation,
    TeacherHead,
    last_hidden,
    short_context,
)
from lrk.hf.sequence_split import split_batch
from lrk.recipe.collate import IGNORE_INDEX
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.finite import SAMPLE_INDICES
from lrk.train.sequence_parallel import SequenceParallelSteps

# What a teacher is given of a batch.
_READ = (
    *("input_ids", "position_ids", "sequence_split"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
)
# Sets what is drawn for cuts apart from what is drawn for positions.
_OF_CUTS = 1


class DistilledSteps(SequenceParallelSteps):
    """Adds the divergence from a teacher to the loss of training; evaluation has none.

    It is logged as `distill_divergence`, in nats a label and without its weight: the mean over the
    steps since the last log.

    Attributes:
        teacher: for `original`, made by `frozen_teacher` before the model is changed.
    """

    args: LrkTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher: PreTrainedModel | None = None
        self._indices: Sequence[int] = ()
        self._divergence: Tensor | None = None
        self._first_step = 0  # of those that `_divergence` is a sum over

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step <= self._first_step:
            self._divergence = None  # where `auto_find_batch_size` has given up a step
        return super().get_batch_samples(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        self._indices = inputs.get(SAMPLE_INDICES, ())
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if self.args.distill == NONE or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = self._with_teacher(model, inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self._divergence is None:
            self._first_step, self._divergence = self.state.global_step, torch.zeros_like(loss)
        self._divergence = self._divergence + outputs["divergence"]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._divergence is not None:
            # Each process has a share of the sum over the labels of a step.
            total = self.accelerator.reduce(self._divergence, "sum")
            steps = self.state.global_step - self._first_step
            logs["distill_divergence"] = float(total) / max(steps, 1)
            self._divergence = None
        super().log(logs, start_time)

    def _with_teacher(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with its `distillation`."""
        weight = self.args.distill_weight
        if self.args.distill != ORIGINAL:
            view = {**inputs, "position_ids": ordinary_positions(inputs)}
            if self.sequence_group is not None:
                view = split_batch(view, self.sequence_group)
            inner = self.accelerator.unwrap_model(model, keep_torch_compile=False)
            return {**inputs, "distillation": Distillation(self._read(inner, view), weight)}
        if self.teacher is None:
            raise ValueError(
                "distill is 'original', but the trainer has no teacher: lrk.train.build_trainer "
                "makes it of the model before it changes that"
            )
        length = short_length(self.args, self.teacher.config.max_position_embeddings)
        rows, tokens = inputs["input_ids"].shape
        seed = self.args.seed
        starts = [
            cut_start(seed, self.state.global_step, index, tokens - length)
            for index in self._indices[:rows]
        ]
        both = with_short_documents(inputs, starts, length)
        hidden = self._read(self.teacher, both.short)
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        head = TeacherHead.of(self.teacher)
        return {**both.batch, "distillation": Distillation(hidden, weight, mask, head)}

    def _read(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        read = {name: batch[name] for name in _READ if name in batch}
        with self.accelerator.autocast():
            return last_hidden(model, read)


def frozen_teacher(model: PreTrainedModel, arguments: LrkTrainingArguments) -> PreTrainedModel:
    """A copy of a loaded model that is not trained, patched as the run's own, on its device."""
    teacher = copy.deepcopy(model).requires_grad_(False).eval()
    patch(teacher, **arguments.kernels, tile_tokens=arguments.tile_tokens)
    return teacher.to(arguments.device)  # type: ignore[arg-type]


def short_length(arguments: LrkTrainingArguments, window: int) -> int:
    """Tokens of the short context of a sample, for `original`.

    Args:
        window: of the teacher.

    Raises:
        ValueError: for one that exceeds it.
    """
    if arguments.distill_length is None:
        return short_context(arguments.train_length, window)
    if arguments.distill_length > window:
        raise ValueError(
            f"distill_length is {arguments.distill_length}; it must be at most the window of the "
            f"model that the run starts from, {window}, in which that is a teacher"
        )
    return arguments.distill_length


def teacher_description(arguments: LrkTrainingArguments, window: int) -> str:
    """Who teaches what, for a run with a teacher.

    Args:
        window: as for `short_length`.

    Raises:
        ValueError: as `short_length`.
    """
    tail = f"weight {arguments.distill_weight:g}"
    if arguments.distill != ORIGINAL:
        return f"the model in ordinary positions, {tail}"
    length = short_length(arguments, window)
    return f"the model before the run, on {length:,} tokens of each sample, {tail}"


def cut_start(seed: int, step: int, index: int, most: int) -> int:
    """Where the cut of a sample begins, from 0 to `most`.

    It follows from (seed, step, sample) alone: not from how many processes or micro-batches make
    the step, or where the run was resumed.
    """
    sequence = np.random.SeedSequence([seed, step, index, _OF_CUTS])
    return int(np.random.Generator(np.random.PCG64(sequence)).integers(most, endpoint=True))


def ordinary_positions(batch: Mapping[str, Any]) -> Tensor:
    """(B, S) int64: how many tokens of its document lie before each token.

    Args:
        batch: a `lrk.recipe.Batch`.
    """
    return _positions(_firsts(batch))


class ShortDocuments(NamedTuple):
    """A batch whose rows have a short document behind them, and that document alone."""

    batch: dict[str, Any]
    """Rows of S + L tokens; the last L are no labels, and have ordinary positions."""
    short: dict[str, Any]
    """`input_ids`, `position_ids` (B, L), and boundaries."""


def with_short_documents(
    batch: Mapping[str, Any], starts: Sequence[int], length: int
) -> ShortDocuments:
    """Each row with L of its own tokens in a row laid behind it, in ordinary positions.

    A cut across documents stays in several documents.

    Args:
        batch: a `lrk.recipe.Batch`, with what else a model takes: a `token_weight` (or a function
            that makes one) is 0 for what is added.
        starts: of each row, where its cut begins, at most S - L.
        length: L.
    """
    device = batch["input_ids"].device
    firsts = _firsts(batch)
    places = torch.tensor(starts, device=device)[:, None] + torch.arange(length, device=device)
    cut, cut_firsts = (x.gather(1, places) for x in (batch["input_ids"], firsts))
    cut_firsts[:, 0] = True
    positions = _positions(cut_firsts)
    behind = {"input_ids": cut, "position_ids": positions}
    whole = {
        **batch,
        **{name: torch.cat([batch[name], added], dim=1) for name, added in behind.items()},
        "labels": nn.functional.pad(batch["labels"], (0, length), value=IGNORE_INDEX),
        **_boundaries(torch.cat([firsts, cut_firsts], dim=1)),
    }
    if "token_weight" in batch:
        whole["token_weight"] = _weight_of_both(batch["token_weight"], length)
    return ShortDocuments(whole, {**behind, **_boundaries(cut_firsts)})


def _weight_of_both(
    weight: Tensor | Callable[[Tensor], Tensor], length: int
) -> Tensor | Callable[[Tensor], Tensor]:
    if isinstance(weight, Tensor):
        return nn.functional.pad(weight, (0, length))
    return lambda losses: nn.functional.pad(weight(losses[:, :-length]), (0, length))


def _firsts(batch: Mapping[str, Any]) -> Tensor:
    """(B, S) bool: whether a token is the first of its document."""
    firsts = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    firsts.view(-1)[batch["cu_seq_lens_q"][:-1].long()] = True
    return firsts


def _positions(firsts: Tensor) -> Tensor:
    places = torch.arange(firsts.numel(), device=firsts.device)
    begins = places.where(firsts.flatten(), 0).cummax(0).values
    return (places - begins).view_as(firsts)


def _boundaries(firsts: Tensor) -> dict[str, Any]:
    """Of documents, as `lrk.recipe.Batch` has them."""
    begins = firsts.flatten().nonzero().flatten()
    ends = torch.cat([begins, begins.new_tensor([firsts.numel()])]).int()
    longest = int(ends.diff().max())
    return {
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }
