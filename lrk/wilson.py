"""The interval of a probability of which a few trials are known (Wilson 1927)."""

import numpy as np
from numpy.typing import NDArray

_Z = 1.96


def wilson_interval(
    hits: NDArray, trials: NDArray, z: float = _Z
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both ends of the score interval, 95 % by default.

    Args:
        hits: how often it happened. Fractions are allowed: scores from 0 to 1 vary no more than
            hits with the same mean.
        trials: of how many, at least 1.
    """
    p, n = hits / trials, trials.astype(np.float64)
    centre = p + z * z / (2 * n)
    margin = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # But for rounding p lies between them.
    low, high = (centre - margin) / scale, (centre + margin) / scale
    return np.clip(low, 0.0, p), np.clip(high, p, 1.0)
