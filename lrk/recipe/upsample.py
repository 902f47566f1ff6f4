"""Length upsampling: more of the long documents of every source, as much of every source.

Taking long documents only would change what the data are about, since books and code are long and
web pages short. So each source keeps its share of the tokens, and inside of it long documents weigh
more (Fu et al., 2402.10171, 3: "per-source length upsampling").
"""

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from lrk.recipe.prepared import source_numbers
from lrk.recipe.samples import document_lengths


def length_upsampled(documents: Dataset, longer_than: int, factor: float) -> Dataset:
    """The documents of one prepared folder, each as often as `copies` says, in their order."""
    numbers = copies(document_lengths(documents), source_numbers(documents), longer_than, factor)
    return documents.select(np.repeat(np.arange(len(numbers)), numbers))


def check_upsampling(longer_than: int, factor: float) -> None:
    """Refuse arguments of `copies` that are out of range."""
    if longer_than < 1:
        raise ValueError(f"upsample_longer_than is {longer_than}; it must be positive")
    if not 1 <= factor < np.inf:
        raise ValueError(f"upsample_factor is {factor}; it must be at least 1 and finite")


def copies(
    lengths: NDArray[np.int64], sources: NDArray[np.int64], longer_than: int, factor: float
) -> NDArray[np.int64]:
    """How often each document is to be read.

    In a source of `T = T_long + T_short` tokens, with `w = T / (f T_long + T_short)`, a short
    document is read `w` times and a long one `f w` times on average: the long ones have `f` times
    the weight, and the source has T tokens still. Averages become whole numbers without a draw:
    of the documents of a source and class, in the order of their lengths, the first k are read
    `floor(k w + 1/2)` times in all. Since the lengths are in order, the tokens of a class are off
    by its longest document at most (summation by parts).

    Args:
        lengths: (D,) tokens of each document.
        sources: (D,) where it comes from.
        longer_than: documents of more tokens than this are long.
        factor: f, at least 1.

    Returns:
        (D,) int64.

    Raises:
        ValueError: for an argument out of range.
    """
    check_upsampling(longer_than, factor)
    numbers = np.zeros(len(lengths), np.int64)
    for source in np.unique(sources):
        of_source = sources == source
        is_long = lengths > longer_than
        long_tokens = float(lengths[of_source & is_long].sum())
        tokens = float(lengths[of_source].sum())
        weight = tokens / (factor * long_tokens + tokens - long_tokens)
        for chosen, rate in ((is_long, factor * weight), (~is_long, weight)):
            members = np.flatnonzero(of_source & chosen)
            members = members[np.argsort(lengths[members], kind="stable")]
            read = np.floor(np.arange(len(members) + 1) * rate + 0.5).astype(np.int64)
            numbers[members] = np.diff(read)
    return numbers
