"""Batches: samples become the arguments of a patched model's forward."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from lrk.recipe.placement import PlacedSample, Placement
from lrk.recipe.samples import Sample

IGNORE_INDEX = -100


class Batch(TypedDict):
    """B samples of S tokens, N documents in all.

    Attributes:
        input_ids, position_ids: (B, S) int64.
        labels: (B, S) int64; -100 at the first token of each document, which no token predicts, and
            where `Sample.is_label` is false.
        cu_seq_lens_q, cu_seq_lens_k: (N + 1,) int32: 0, then the end of each document among the
            B * S tokens, rows end to end.
        max_length_q, max_length_k: tokens of the longest document.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    cu_seq_lens_q: Tensor
    cu_seq_lens_k: Tensor
    max_length_q: int
    max_length_k: int


class Collator:
    """Stacks samples and draws their positions.

    A row that already has `position_ids` keeps them (`PlacedSamples`). The epoch lies in shared
    memory, so that workers which outlive an epoch see the next one.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw positions for this epoch, from the next batch that is collated."""
        self._epoch.fill_(epoch)

    def __call__(self, samples: Sequence[Sample | PlacedSample]) -> Batch:
        epoch = int(self._epoch)
        placed = [
            sample if "position_ids" in sample else self.placement.placed(sample, epoch)
            for sample in samples
        ]
        lengths = torch.tensor(
            [int(document.sum()) for sample in placed for document in sample["segment_lengths"]]
        )
        cu_seq_lens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        input_ids = torch.stack([sample["input_ids"] for sample in placed])
        labels = input_ids.flatten().index_fill(0, cu_seq_lens[:-1], IGNORE_INDEX)
        if "is_label" in placed[0]:
            is_label = torch.cat([sample["is_label"] for sample in placed])
            labels = labels.masked_fill(~is_label, IGNORE_INDEX)
        return {
            "input_ids": input_ids,
            "position_ids": torch.stack([sample["position_ids"] for sample in placed]),  # type: ignore[typeddict-item]
            "labels": labels.view_as(input_ids),
            "cu_seq_lens_q": cu_seq_lens.int(),
            "cu_seq_lens_k": cu_seq_lens.int(),
            "max_length_q": int(lengths.max()),
            "max_length_k": int(lengths.max()),
        }
