"""How many distances beyond the model's window a run trains: without one it extends nothing.

A query attends to a key at the distance of their positions. A window of L tokens has shown the
model the distances 0 to L - 1; what extends it is pairs within a document that are farther apart.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from lrk.recipe import Placement, Sample, Samples, SampleStream
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.placement import PlacedSample

SURVEYED = 16
SURVEYED_OF_A_STREAM = 4

MOST_CELLS = 2**22

# Below these a run is warned about: the share of pairs, and that of distances, beyond the window.
FEW_PAIRS, FEW_DISTANCES = 1e-3, 0.05

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewDistances:
    """What a run trains beyond the window, counted in the samples whose positions are spread.

    Attributes:
        window: `L`, that the model has before the run.
        reach: the positions that the run draws from.
        samples: placements that were counted.
        pairs: of a query and a key of one document, in all of them.
        new_pairs: those at a distance of at least `L`.
        distances: different distances among these, of `reach - L`.
        spreads: share of the run's samples that are spread.
    """

    window: int
    reach: int
    samples: int
    pairs: int
    new_pairs: int
    distances: int
    spreads: float

    @property
    def are_few(self) -> bool:
        """Whether hardly anything beyond the window is trained."""
        return self.new_pairs < FEW_PAIRS * self.pairs or self.distances < FEW_DISTANCES * (
            self.reach - self.window
        )

    def __str__(self) -> str:
        of_samples = "" if self.spreads == 1 else f" in the {self.spreads:.0%} of samples that skip"
        return (
            f"{self.new_pairs / self.pairs:.2%} of the pairs of tokens{of_samples} lie beyond the "
            f"model's window of {self.window:,}; {self.samples} samples have "
            f"{self.distances:,} of the {self.reach - self.window:,} distances that are new"
        )


def check_new_distances(
    samples: Samples | MixedSamples | SampleStream,
    placement: Placement,
    target_length: int,
    window: int,
) -> NewDistances | None:
    """Count on the first samples what a run trains beyond the window.

    Args:
        placement: of the run.
        target_length: window that it extends to.
        window: of the model before it.

    Returns:
        None where there is nothing to extend, or no position is meant to be spread.

    Raises:
        ValueError: if positions are meant to be spread, and no distance is new.
    """
    if target_length <= window:
        return None
    spreads = placement.method != "contiguous" and placement.contiguous_share < 1
    drawn = replace(placement, contiguous_share=0.0) if spreads else placement
    placed = _placed(samples, drawn)
    found = _counted(placed, window, placement.target_length, 1 - placement.contiguous_share)
    if not spreads:
        found = replace(found, spreads=1.0)
    if spreads and found.new_pairs == 0:
        raise ValueError(
            f"none of the first samples has a distance beyond the model's window of {window:,}, so "
            f"target_length {target_length:,} would not be trained: {_reason(placed, drawn)}"
        )
    if found.new_pairs == 0 or found.are_few:
        logger.warning("few distances beyond the window are trained: %s", found)
    return found


def _placed(
    samples: Samples | MixedSamples | SampleStream, placement: Placement
) -> list[PlacedSample]:
    """As many as `SURVEYED`, in later epochs where there are fewer samples."""
    first: list[Sample]
    if isinstance(samples, SampleStream):
        first = list(islice(samples.one_pass(count()), SURVEYED_OF_A_STREAM))
    else:
        first = [samples[index] for index in range(min(SURVEYED, len(samples)))]
    return [
        placement.placed(first[number % len(first)], epoch=number // len(first))
        for number in range(SURVEYED)
    ]


def _counted(
    placed: Sequence[PlacedSample], window: int, reach: int, spreads: float
) -> NewDistances:
    pairs = new_pairs = 0
    # How often each distance occurs is the autocorrelation of the positions that are taken, which
    # the Fourier transform turns into a product; documents add up. Beyond millions of positions
    # it is that of cells of several. In numpy: PyTorch's threads cost more than they save here.
    cell = -(-reach // MOST_CELLS)
    size = 2 ** (2 * (reach // cell) - 1).bit_length()
    power = np.zeros(size // 2 + 1)
    for sample in placed:
        for positions in _documents(sample):
            pairs += len(positions) * (len(positions) + 1) // 2
            # Positions rise, so the keys that are far enough behind a query are the first ones.
            beyond = int(np.searchsorted(positions, positions - window, side="right").sum())
            new_pairs += beyond
            if beyond:
                taken = np.zeros(size)
                taken[positions // cell] = 1
                spectrum = np.fft.rfft(taken)
                power += spectrum.real**2 + spectrum.imag**2
    occurrences = np.fft.irfft(power, size)[window // cell : reach // cell]
    return NewDistances(
        window=window,
        reach=reach,
        samples=len(placed),
        pairs=pairs,
        new_pairs=new_pairs,
        distances=int((occurrences > 0.5).sum()) * cell,
        spreads=spreads,
    )


def _documents(sample: PlacedSample) -> list[NDArray[np.int64]]:
    """The positions of each."""
    lengths = [int(lengths.sum()) for lengths in sample["segment_lengths"]]
    return [positions.numpy() for positions in sample["position_ids"].split(lengths)]


def _reason(placed: Sequence[PlacedSample], placement: Placement) -> str:
    documents = [each for sample in placed for each in _documents(sample)]
    longest = max(len(each) for each in documents)
    if any(int(each[-1]) >= len(each) for each in documents):
        last = max(int(each[-1]) for each in documents)
        return f"positions skip, but end at {last:,}"
    return (
        f"position_method {placement.method!r} skips nowhere in them (documents of up to "
        f"{longest:,} tokens, {len(documents) / len(placed):.1f} a sample), because it finds no "
        "sentence or line that ends inside of them; take another one, such as 'pose', which cuts "
        "anywhere"
    )
