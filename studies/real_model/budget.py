"""Wall time: what is left of it, and whether the next piece of work fits into it."""

import time

MARGIN = 1.15
"""Of a piece's expected time: no two take the same."""


class OutOfTimeError(Exception):
    """The next piece does not fit into what is left of the budget."""


class Budget:
    """Seconds of wall time from now on.

    Args:
        seconds: None for no limit.

    Raises:
        ValueError: if they are not positive.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(f"--budget is {seconds}; it must be positive, in seconds")
        self._seconds = seconds
        self._begin = time.monotonic()

    def left(self) -> float:
        """Seconds, below 0 when it is overdrawn."""
        if self._seconds is None:
            return float("inf")
        return self._seconds - (time.monotonic() - self._begin)

    def fits(self, expected: float) -> bool:
        """Whether a piece of so many seconds may begin; where 0 are expected nobody knows."""
        return self.left() > MARGIN * expected

    def require(self, piece: str, expected: float) -> None:
        """Raise `OutOfTimeError`, with a sentence, unless `fits`."""
        if self.fits(expected):
            return
        left = self.left()
        if left <= 0:
            raise OutOfTimeError(f"the budget is spent; {piece} was next")
        raise OutOfTimeError(
            f"{piece} may take {MARGIN * expected:.0f} s and {left:.0f} s are left of the budget"
        )
