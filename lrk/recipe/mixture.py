"""Samples of several sources in given shares, as replay after an extension wants them."""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from lrk.recipe.samples import Sample, Samples


class MixedSamples(torch.utils.data.Dataset[Sample]):
    """Samples of which a given share comes from each source.

    An epoch is just long enough that every sample of every source is in it. So one source shows
    each of its samples once, and the others, whose share is larger than their part of the samples,
    begin again. A sample that comes again has another number, and so other positions. Any stretch
    of the epoch has the shares, within a sample or two of each source.

    Sources may be of several kinds: where one holds conversations and another plain text, all
    tokens of the text are predicted.

    Args:
        sources: at least one, of one length.
        shares: one a source, positive, adding up to 1.

    Attributes:
        length, selection: as of the sources.
        counts: how many samples of an epoch come from each source.
        num_tokens: tokens in all samples of an epoch.
        num_unused_tokens, num_unselected_tokens, num_packed: of the sources together, each of their
            samples counted once.

    Raises:
        ValueError: for shares that do not fit.
    """

    def __init__(self, sources: Sequence[Samples], shares: Sequence[float]) -> None:
        check_shares(shares, len(sources))
        self.sources = list(sources)
        self.length = sources[0].length
        self.selection = sources[0].selection
        self.counts = _counts([len(source) for source in sources], shares)
        self._source, self._number = _interleaved(self.counts)
        self._has_labels = any("is_label" in source[0] for source in sources)
        self.num_tokens = len(self) * self.length
        self.num_unused_tokens = sum(source.num_unused_tokens for source in sources)
        self.num_unselected_tokens = sum(source.num_unselected_tokens for source in sources)
        self.num_packed = sum(source.num_packed for source in sources)

    def fingerprint(self) -> str:
        """Of the documents of all sources."""
        parts = [source.fingerprint() for source in self.sources]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        source = self.sources[self._source[index]]
        sample = source[int(self._number[index]) % len(source)]
        sample["index"] = index
        if self._has_labels and "is_label" not in sample:
            sample["is_label"] = torch.ones_like(sample["input_ids"], dtype=torch.bool)
        return sample


def check_shares(shares: Sequence[float], num_sources: int) -> None:
    """Refuse shares that are not one a source, positive, and adding up to 1."""
    listed = ", ".join(map(str, shares))
    if len(shares) != num_sources:
        raise ValueError(
            f"data_shares has {len(shares)} entries ({listed}) for {num_sources} sources in data; "
            "there must be one a source"
        )
    if any(not 0 < share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"data_shares is {listed}; they must be positive and add up to 1")


def _counts(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Samples of each source in an epoch: at least its size, and its share of all."""
    # As fractions of small numbers, so that 0.3 of 10 is 3.
    rounded = [Fraction(share).limit_denominator(10**6) for share in shares]
    exact = [share / sum(rounded) for share in rounded]
    total = math.ceil(max(size / share for size, share in zip(sizes, exact, strict=True)))
    counts = [math.floor(total * share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - total * exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _interleaved(counts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) the source of each sample of an epoch, and its number within the source.

    Sample `k` of the `n` of a source stands at `(k + 1/2) / n` of the epoch.
    """
    numbers = [np.arange(count) for count in counts]
    places = [(number + 0.5) / max(len(number), 1) for number in numbers]
    order = np.argsort(np.concatenate(places), kind="stable")
    source = np.repeat(np.arange(len(counts)), counts)
    return source[order], np.concatenate(numbers)[order]
