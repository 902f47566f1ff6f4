"""Losses in which some tokens weigh more than others: LongCE, and impactful token types."""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lrk.hf.sequence_split import SequenceSplit
from lrk.recipe.collate import IGNORE_INDEX
from lrk.recipe.impactful import read_impactful
from lrk.train.arguments import IMPACTFUL, LONGCE, LrkTrainingArguments
from lrk.train.distillation import DistilledSteps
from lrk.train.longce import longce_weight, short_losses


class WeightedTokens(DistilledSteps):
    """Weighs the tokens' losses in training as `token_loss` says; evaluation stays plain.

    - `impactful`: `impactful_weight` for the types of the table and 1 for others, divided by their
      mean over all labels of the step, micro-batches and devices together. So the weights of a step
      have mean 1, and neither learning rate nor gradient clipping mean anything else than before.
    - `longce`: see `lrk.train.longce`. As in the paper the weights are not normalised.

    The loss of a step is the sum of the weighted losses over the number of labels in the step.

    Raises:
        ValueError: for a table that cannot be read or is of another tokenizer.
    """

    args: LrkTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._type_weights: Tensor | None = None
        if self.args.token_loss == IMPACTFUL:
            tokenizer = self.processing_class
            assert isinstance(tokenizer, PreTrainedTokenizerBase)
            self._type_weights = type_weights(self.args, tokenizer)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._type_weights is not None and batches:
            self._weigh(batches, self._type_weights, device)
        return batches, items

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self.args.token_loss == LONGCE and model.training:
            with self.accelerator.autocast():
                short = short_losses(
                    self.accelerator.unwrap_model(model, keep_torch_compile=False),
                    inputs,
                    self.args.longce_short_context,
                    self.args.longce_short_stride,
                    self.sequence_group,
                )
            if self.sequence_group is not None:
                whole = inputs["position_ids"], inputs["cu_seq_lens_q"]
                short = SequenceSplit(self.sequence_group, *whole).of_labels(short, torch.nan)
            weight = longce_weight(short, self.args.longce_max_weight)
            inputs = {**inputs, "token_weight": weight}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _weigh(
        self, batches: list[dict[str, Any]], type_weights: Tensor, device: torch.device
    ) -> None:
        """Put `token_weight` (B, S) into the batches of a step; its mean over the labels is 1."""
        weights = [
            type_weights.to(batch["labels"].device)[batch["labels"].clamp(min=0)]
            for batch in batches
        ]
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for weight, batch in zip(weights, batches, strict=True):
            kept = batch["labels"][..., 1:] != IGNORE_INDEX
            sums += torch.stack([weight[..., 1:][kept].double().sum(), kept.sum()]).to(device)
        total, count = self.accelerator.reduce(sums, "sum").unbind()
        mean = torch.where(count > 0, total / count, 1.0)
        for weight, batch in zip(weights, batches, strict=True):
            batch["token_weight"] = weight / mean.to(weight.device, weight.dtype)

    def _unwrapped(self, wrapped: nn.Module) -> PreTrainedModel:
        """The causal language model itself; adapters are inside it."""
        inner = self.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
        model = inner.get_base_model() if isinstance(inner, PeftModel) else inner
        assert isinstance(model, PreTrainedModel)
        return model


def type_weights(arguments: LrkTrainingArguments, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(V,) float32: `impactful_weight` for the types of the table, 1 for others."""
    assert arguments.impactful_tokens is not None
    mask = torch.from_numpy(read_impactful(arguments.impactful_tokens, tokenizer).mask())
    return torch.ones(len(mask)).masked_fill(mask, arguments.impactful_weight)
