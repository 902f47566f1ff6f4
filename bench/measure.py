"""What the benchmarks share: a timer that waits for the GPU, peak memory, and what is recorded."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import clock
from bench.device import DEVICE, device_name


def timer() -> float:
    """Seconds; on a GPU of work done, not of work queued, the host's queueing included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that tensors made by `call` hold at one time, its results included."""
    if DEVICE.type == "cuda":
        return clock.peak_bytes(call)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def run(benchmark: Any, call: Callable[[], object], work: dict[str, float], **info: object) -> None:
    """Time `call` and record what it was: `benchmark` is pytest-benchmark's fixture.

    pytest-benchmark's own columns are the clock's. On a GPU they hold the host's work too, so that
    the device's own time is recorded beside them, and rates are of that.

    `work` is what any implementation has to do at least, by the name of its rate, so that rates
    compare providers: `{"gb_per_s": 0.5}`.
    """
    call()  # compile and warm up
    benchmark.extra_info.update(info, device=device_name(), peak_mib=peak_bytes(call) / 2**20)
    benchmark(call)
    if not benchmark.enabled:
        return
    seconds = benchmark.stats.stats.min
    if DEVICE.type == "cuda":
        timing = clock.measure(call)
        benchmark.extra_info.update(device_ms=timing.milliseconds, host_us=timing.host_microseconds)
        seconds = timing.milliseconds / 1000
    for rate, amount in work.items():
        benchmark.extra_info[rate] = amount / seconds
