"""The factors that are searched, within the bounds of LongRoPE2 (2502.20082, section 3.2).

A dimension whose period is longer than the window has never been seen to turn once: beyond the
window it is out of distribution unless it is slowed down by the extension ratio `s` at least
(eq. 10). The first such dimension is the theoretical critical one (eq. 7). What is rare in training
texts is long distances, so dimensions are trained worse than their period says, and the practical
critical dimension lies below: candidates begin where ten periods fit the window (algorithm 1).
"""

import math
from dataclasses import dataclass
from random import Random

from torch import Tensor

_WELL_TRAINED = 10
"""Periods within the window of the lowest candidate for the critical dimension (algorithm 1)."""
_SLACK = 2
"""Times the extension ratio: the largest factor (algorithm 2)."""


@dataclass(frozen=True)
class Candidate:
    """One choice of factors, by which the frequencies of the model as it comes are divided.

    Attributes:
        critical: index of the first dimension that is searched.
        searched: factors of the dimensions from there on, non-decreasing.
    """

    critical: int
    searched: tuple[float, ...]

    @property
    def factors(self) -> tuple[float, ...]:
        """Of all R/2 dimensions.

        Below the critical dimension c the RoPE base is raised so far that c, were it among them,
        would have its own factor: the base `theta f_c ** (R / 2c)`, which are factors of
        `f_c ** (j / c)` (algorithm 2, line 7; algorithm 1 writes c as its lowest candidate there,
        of which we take it that c is meant).
        """
        first = self.searched[0]
        below = tuple(first ** (index / self.critical) for index in range(self.critical))
        return below + self.searched


@dataclass(frozen=True)
class SearchSpace:
    """All candidates for a model and a target.

    Attributes:
        dims: R/2.
        ratio: `s`, the target in windows; factors lie from `s` to `2 s`.
        lowest: of the candidates for the critical dimension.
        highest: of them, the theoretical critical dimension.
    """

    dims: int
    ratio: float
    lowest: int
    highest: int

    @classmethod
    def of(cls, inv_freq: Tensor, window: int, target_length: int) -> "SearchSpace":
        """The space of a model.

        Dimensions with a period of less than the window are counted, which for frequencies
        `theta ** (-2 j / R)` is `ceil(R / 2 log_theta(window / 2 pi))` (eq. 7). It is kept within 1
        and R/2 - 1, so that there is something on both sides (ours).

        Args:
            inv_freq: (R/2,) radians per position, of the model as it comes.
            window: tokens it was trained on.
            target_length: tokens to reach.

        Raises:
            ValueError: for a target within the window, or R below 4.
        """
        dims = len(inv_freq)
        if target_length <= window:
            raise ValueError(
                f"target_length is {target_length}; it must be more than the {window} positions "
                "that the model has"
            )
        if dims < 2:
            raise ValueError(f"the model rotates {2 * dims} dimensions; a search needs 4 or more")
        periods = window * inv_freq / (2 * math.pi)

        def with_more_than(count: int) -> int:
            return min(max(int((periods > count).sum()), 1), dims - 1)

        return cls(dims, target_length / window, with_more_than(_WELL_TRAINED), with_more_than(1))

    def initial(self, critical: int, random: Random) -> Candidate:
        """One factor for all searched dimensions (algorithm 1).

        The paper draws an integer; ours is a real number, for ratios that are small or none.
        """
        return Candidate(critical, (self._factor(random),) * (self.dims - critical))

    def mutated(self, candidate: Candidate, probability: float, random: Random) -> Candidate:
        """Each factor is drawn anew with a probability (algorithm 2).

        How they are drawn and kept non-decreasing the paper leaves open: here uniformly, and then
        all are sorted.
        """
        searched = [
            self._factor(random) if random.random() < probability else factor
            for factor in candidate.searched
        ]
        return Candidate(candidate.critical, tuple(sorted(searched)))

    def crossed(self, one: Candidate, other: Candidate, random: Random) -> Candidate:
        """The critical dimension of one, each factor of either with the same probability.

        Crossing is of the first LongRoPE (2402.13753, algorithm 1), whose evolution "standard" in
        the second refers to. Where the other's critical dimension is higher, its factors below are
        raised to the bound, and all are sorted (ours).
        """
        pairs = zip(one.searched, other.factors[one.critical :], strict=True)
        searched = [max(random.choice(pair), self.ratio) for pair in pairs]
        return Candidate(one.critical, tuple(sorted(searched)))

    def _factor(self, random: Random) -> float:
        return random.uniform(self.ratio, _SLACK * self.ratio)
