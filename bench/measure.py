"""What the benchmarks share: a timer that waits for the GPU, peak memory, and what is recorded."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timer() -> float:
    """Seconds; on a GPU of work done, not of work queued."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that tensors made by `call` hold at one time, its results included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
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

    `work` is what any implementation has to do at least, by the name of its rate, so that rates
    compare providers: `{"gb_per_s": 0.5}`.
    """
    call()  # compile and warm up
    benchmark.extra_info.update(info, device=_device_name(), peak_mib=peak_bytes(call) / 2**20)
    benchmark(call)
    if benchmark.enabled:
        for rate, amount in work.items():
            benchmark.extra_info[rate] = amount / benchmark.stats.stats.min


def _device_name() -> str:
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
