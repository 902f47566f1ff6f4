"""Placement: the positions that the tokens of a sample are given, drawn anew in every epoch.

Usually the text of a sample is fixed, and its positions are drawn. With the selection `positions`
it is the other way round: a sample comes with n tokens of a document, up to `Lt`, of which the ones
at the positions are taken, as CREAM does (2406.07138, 3.2).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor

from lrk import positions
from lrk.recipe.samples import Sample, Samples


class PlacedSample(Sample):
    """A sample of S tokens with `position_ids` (S,) int64."""

    position_ids: Tensor


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
        train_length: `Ls`, tokens of a sample; longer ones are read at the positions drawn. None
            keeps all tokens of all samples.
        ending: token ids that end every sample, predicted like all others; `endprompt` puts
            them at the end of the target.
        pin_end: end every text of several sentences at `target_length - 1`; for longrecipe alone.
    """

    target_length: int
    method: str = "longrecipe"
    contiguous_share: float = 0.0
    seed: int = 0
    train_length: int | None = None
    pin_end: bool = False
    ending: tuple[int, ...] = ()

    def placed(self, sample: Sample, epoch: int = 0) -> PlacedSample:
        """The sample with its positions, and with its text if that follows from them.

        Token j of m is number `min(position, n - m + j)` of n, where m is `Ls` less the ending. A
        document that reaches to a position gives the token there. One that does not gives the
        tokens that just leave room for those which follow: so the last run of positions takes the
        end of the document, and a middle run that lies beyond it what comes before. Nothing is
        taken twice.
        """
        position_ids = self.position_ids(sample, epoch)
        length = len(position_ids) - len(self.ending)
        left_out = len(sample["input_ids"]) - length
        if left_out:
            last = torch.arange(length) + left_out
            sample = _taken(sample, torch.minimum(position_ids[:length], last))
        return {**self._ended(sample), "position_ids": position_ids}

    def position_ids(self, sample: Sample, epoch: int = 0) -> Tensor:
        """Positions (Ls,) int64 of a sample and the ending that `placed` adds to it.

        Nothing attends across the documents of a packed sample, so each of them is spread over
        the whole window, as if it were a sample by itself: it starts at 0 on its own.
        """
        generator = _generator(self.seed, epoch, sample["index"])
        contiguous = torch.rand((), generator=generator) < self.contiguous_share
        ended = self._ended(sample)
        documents = ended["segment_lengths"]
        if self.train_length is not None and len(ended["input_ids"]) > self.train_length:
            documents = [torch.tensor([self.train_length])]
        method = "contiguous" if contiguous else self.method
        return torch.cat(
            [
                self._sampler(method, lengths)(lengths, self.target_length, generator)
                for lengths in documents
            ]
        )

    def _ended(self, sample: Sample) -> Sample:
        """The sample and the ending, which belongs to its last document."""
        if not self.ending:
            return sample
        *others, last = sample["segment_lengths"]
        ended: Sample = {
            **sample,
            "input_ids": torch.cat([sample["input_ids"], torch.tensor(self.ending)]),
            "segment_lengths": [*others, torch.cat([last, last.new_tensor([len(self.ending)])])],
        }
        if "is_label" in sample:
            predicted = torch.ones(len(self.ending), dtype=torch.bool)
            ended["is_label"] = torch.cat([sample["is_label"], predicted])
        return ended

    def _sampler(self, method: str, lengths: Tensor) -> positions.Sampler:
        if self.pin_end and method == "longrecipe" and len(lengths) > 1:
            return partial(positions.longrecipe, pin_end=True)
        if self.ending and method == "endprompt":
            return partial(positions.endprompt, prompt_length=len(self.ending))
        return positions.SAMPLERS[method]


class PlacedSamples(torch.utils.data.Dataset[PlacedSample]):
    """Samples with positions that never change, to evaluate on: rows also hold `position_ids`."""

    def __init__(self, samples: Samples, placement: Placement) -> None:
        self._samples = samples
        self._placement = placement

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> PlacedSample:
        return self._placement.placed(self._samples[index])


def _taken(sample: Sample, tokens: Tensor) -> Sample:
    """The tokens at these indices (m,), as one segment."""
    kept: Sample = {
        **sample,
        "input_ids": sample["input_ids"][tokens],
        "segment_lengths": [torch.tensor([len(tokens)])],
    }
    return {**kept, "is_label": sample["is_label"][tokens]} if "is_label" in sample else kept


def _generator(seed: int, epoch: int, index: int) -> Generator:
    """A generator for one sample in one epoch; hashing keeps neighbouring ones independent."""
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]))
