"""How many distances beyond the model's window a run trains: without one it extends nothing.

A query attends to a key at the distance of their positions. A window of L tokens has shown the
model the distances 0 to L - 1; what extends it is pairs within a document that are farther apart,
as far as a layer of the model sees them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from lrk.recipe import Placement, Sample, Samples, SampleStream
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.placement import PlacedSample
from lrk.train.reached_layers import ReachedLayers, reached_layers

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
        layers: of the model, and the window `L` that it has before the run.
        reach: the positions that the run draws from, no farther apart than a layer sees.
        samples: placements that were counted.
        pairs: of a query and a key of one document, in all of them.
        new_pairs: those at a distance of at least `L` that a layer sees.
        distances: different distances among these, of `reach - L`.
        spreads: share of the run's samples that are spread.
    """

    layers: ReachedLayers
    reach: int
    samples: int
    pairs: int
    new_pairs: int
    distances: int
    spreads: float

    @property
    def window(self) -> int:
        return self.layers.window

    @property
    def are_few(self) -> bool:
        """Whether hardly anything beyond the window is trained."""
        return self.new_pairs < FEW_PAIRS * self.pairs or self.distances < FEW_DISTANCES * (
            self.reach - self.window
        )

    def __str__(self) -> str:
        if self.reach == self.window:
            return f"none beyond the model's window of {self.window:,} is seen; {self.layers}"
        of_samples = "" if self.spreads == 1 else f" in the {self.spreads:.0%} of samples that skip"
        return (
            f"{self.new_pairs / self.pairs:.2%} of the pairs of tokens{of_samples} lie beyond the "
            f"model's window of {self.window:,}; {self.samples} samples have "
            f"{self.distances:,} of the {self.reach - self.window:,} distances that are new; "
            f"{self.layers}"
        )


def check_new_distances(
    samples: Samples | MixedSamples | SampleStream,
    placement: Placement,
    target_length: int,
    window: int,
    config: PretrainedConfig,
) -> NewDistances | None:
    """Count on the first samples what a run trains beyond the window, and which layers it reaches.

    Args:
        placement: of the run.
        target_length: window that it extends to.
        window: of the model before it.
        config: of the model, for its layers.

    Returns:
        None where there is nothing to extend, or no position is meant to be spread.

    Raises:
        ValueError: if positions are meant to be spread, and no distance is new, or no layer sees
            those that are.
    """
    if target_length <= window:
        return None
    spreads = placement.method != "contiguous" and placement.contiguous_share < 1
    drawn = replace(placement, contiguous_share=0.0) if spreads else placement
    layers = reached_layers(config, window)
    if spreads:
        layers.check(placement.method)
    placed = _placed(samples, drawn)
    found = _counted(placed, layers, placement.target_length, 1 - placement.contiguous_share)
    if not spreads:
        found = replace(found, spreads=1.0)
    if spreads and found.new_pairs == 0:
        raise ValueError(
            f"none of the first samples has a distance beyond the model's window of {window:,}, so "
            f"target_length {target_length:,} would not be trained: {_reason(placed, drawn)}"
        )
    if found.new_pairs == 0 or found.are_few:
        logger.warning("few distances beyond the window are trained: %s", found)
    if spreads and layers.warning:
        logger.warning(layers.warning)
    logger.info("%s", found)
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
    placed: Sequence[PlacedSample], layers: ReachedLayers, length: int, spreads: float
) -> NewDistances:
    """With positions below `length`."""
    pairs = new_pairs = 0
    window = layers.window
    reach = length if layers.farthest is None else max(min(length, layers.farthest), window)
    # How often each distance occurs is the autocorrelation of the positions that are taken, which
    # the Fourier transform turns into a product; documents add up. Beyond millions of positions
    # it is that of cells of several. In numpy: PyTorch's threads cost more than they save here.
    cell = -(-length // MOST_CELLS)
    size = 2 ** (2 * (length // cell) - 1).bit_length()
    power = np.zeros(size // 2 + 1)
    for sample in placed:
        for positions in _documents(sample):
            pairs += len(positions) * (len(positions) + 1) // 2
            # Positions rise, so the keys that are far enough behind a query are the first ones.
            keys = np.searchsorted(positions, positions - window, side="right")
            unseen = np.searchsorted(positions, positions - reach, side="right")
            beyond = int(np.maximum(keys - unseen, 0).sum())
            new_pairs += beyond
            if beyond:
                taken = np.zeros(size)
                taken[positions // cell] = 1
                spectrum = np.fft.rfft(taken)
                power += spectrum.real**2 + spectrum.imag**2
    occurrences = np.fft.irfft(power, size)[window // cell : reach // cell]
    return NewDistances(
        layers=layers,
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
