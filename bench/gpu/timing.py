"""A row with the times, rates and memory of a call."""

from collections.abc import Callable
from dataclasses import replace

from bench.clock import measure, peak_bytes
from bench.gpu.row import Row


def timed(
    what: Row,
    call: Callable[[], object],
    flop: float | None = None,
    traffic: float | None = None,
    seconds: float = 0.2,
) -> Row:
    """Time a call that was made before.

    Args:
        flop: useful ones of a call.
        traffic: bytes that any implementation has to move.
        seconds: to spend, about.
    """
    timing = measure(call, seconds)
    each = timing.milliseconds / 1000
    return replace(
        what,
        milliseconds=timing.milliseconds,
        spread=timing.spread,
        host_microseconds=timing.host_microseconds,
        tflop_per_s=None if flop is None else flop / each / 1e12,
        gb_per_s=None if traffic is None else traffic / each / 1e9,
        peak_mib=peak_bytes(call) / 2**20,
    )
