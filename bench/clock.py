"""How long the device works on a call, and how long the host takes to queue it.

The host may need longer to launch a kernel than the device to run it. So the device is kept busy
until everything is queued: what lies between the two events is then work of the device alone.
Before each repetition the cache is overwritten: a training step finds nothing of its inputs there.
"""

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import NamedTuple

import torch

from bench.device import DEVICE

MAX_REPEATS = 50
_CYCLES_PER_SECOND = 2e9  # at most; a slower clock only waits longer
_LONGEST_WAIT = 0.05  # seconds: a host that took longer did something that it will not do again


class Timing(NamedTuple):
    """Median and distance of the quartiles of the device's time; the host's time of a call."""

    milliseconds: float
    spread: float
    host_microseconds: float


def measure(call: Callable[[], object], seconds: float = 0.2) -> Timing:
    """Time a call that was made at least once before.

    Args:
        seconds: to spend, about. Three repetitions are made in any case, of long calls two.
    """
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    if once < seconds / 4:
        host = median([host, *_host_seconds(call, 4)])
    least = 3 if once < 2 * seconds else 2
    repeats = min(MAX_REPEATS, max(least, int(seconds / once)))
    times = _device_milliseconds(call, repeats, host)
    low, _, high = quantiles(times, n=4, method="inclusive")
    return Timing(median(times), high - low, 1e6 * host)


def _host_seconds(call: Callable[[], object], calls: int) -> list[float]:
    """Time until each of some calls returned, the device idle before each."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        torch.cuda.synchronize()
    return times


def _device_milliseconds(call: Callable[[], object], repeats: int, host: float) -> list[float]:
    cache = torch.cuda.get_device_properties().L2_cache_size
    flush = torch.empty(4 * cache, dtype=torch.int8, device=DEVICE)
    wait = min(1.5 * host + 2e-5, _LONGEST_WAIT)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda.synchronize()
    for start, end in events:
        flush.zero_()
        torch.cuda._sleep(int(wait * _CYCLES_PER_SECOND))
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory during a call, its results included, over what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
