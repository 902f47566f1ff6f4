"""Placement: the positions that the tokens of a sample are given, drawn anew in every epoch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from lrk import positions
from lrk.recipe.samples import Sample, Samples


@dataclass(frozen=True)
class Placement:
    """How samples are laid out over a window that is longer than they are.

    The positions of a sample follow from (seed, epoch, index) alone: not from the order in which
    samples are read, the number of workers, or what a resumed run has read before.

    Attributes:
        target_length: the window in tokens; every position is below it.
        method: a key of `positions.SAMPLERS`.
        contiguous_share: the probability that a sample keeps ordinary positions, so that the model
            does not forget short contexts.
        seed: of the run.
    """

    target_length: int
    method: str = "longrecipe"
    contiguous_share: float = 0.0
    seed: int = 0

    def position_ids(self, sample: Sample, epoch: int = 0) -> Tensor:
        """Positions (S,) int64; each document of a packed sample starts at 0 on its own.

        Nothing attends across the documents of a packed sample, so each of them is spread over
        the whole window, as if it were a sample by itself.
        """
        generator = _generator(self.seed, epoch, sample["index"])
        contiguous = torch.rand((), generator=generator) < self.contiguous_share
        sampler = positions.SAMPLERS["contiguous" if contiguous else self.method]
        return torch.cat(
            [
                sampler(lengths, self.target_length, generator)
                for lengths in sample["segment_lengths"]
            ]
        )


class PlacedSamples(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples with positions that never change, to evaluate on: rows also hold `position_ids`."""

    def __init__(self, samples: Samples, placement: Placement) -> None:
        self._samples = samples
        self._placement = placement

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        return {**sample, "position_ids": self._placement.position_ids(sample)}


def _generator(seed: int, epoch: int, index: int) -> Generator:
    """A generator for one sample in one epoch; hashing keeps neighbouring ones independent."""
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]))
