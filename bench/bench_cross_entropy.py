"""Time and peak memory of linear cross-entropy, forward and backward, beside its peers.

    python -m pytest bench/bench_cross_entropy.py --benchmark-json=cross_entropy.json
    python -m pytest bench/bench_cross_entropy.py -k "4096x576x49152 and not compiled"

On a machine that does other work too, measure the time of the processor instead of the clock's:

    OMP_NUM_THREADS=1 python -m pytest bench/bench_cross_entropy.py \
        --benchmark-timer=time.process_time

`peak_mib` in the report is the peak during one step over what was allocated before: the gradients
and everything temporary. On a CPU it is the growth of the resident set, so an own process for each
case (`-k`) is more exact.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import clock
from bench.device import DEVICE
from bench.peers import Unavailable
from bench.peers.cross_entropy import (
    Loss,
    compiled,
    cut_cross_entropy,
    eager,
    liger,
    lrk,
    torch_chunked,
)

ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
# (tokens, hidden size, vocabulary): SmolLM2, Llama 2 and Mistral, Llama 3, and the latter at 32k.
SHAPES = [(4096, 576, 49_152), (2048, 4096, 32_000)]
if ON_GPU:
    SHAPES += [(4096, 4096, 128_256), (32_768, 4096, 128_256)]
PROVIDERS = [lrk, torch_chunked, eager, compiled, cut_cross_entropy, liger]


def resident_mib(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (highest since the last reset) of this process, on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_mib(step: Callable[[], None]) -> float:
    """Highest memory during `step` over that before it."""
    if ON_GPU:
        return clock.peak_bytes(step) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the highest resident size
    before = resident_mib("VmRSS")
    step()
    return resident_mib("VmHWM") - before


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_linear_cross_entropy(
    provider: Callable[[], Loss], shape: tuple[int, int, int], benchmark
) -> None:
    try:
        loss = provider()
    except Unavailable as reason:
        pytest.skip(str(reason))
    tokens, width, vocab = shape
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=DTYPE, requires_grad=True)
    weight = (torch.randn(vocab, width, device=DEVICE) * width**-0.5).to(DTYPE).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), device=DEVICE)

    def clear() -> None:
        hidden.grad = weight.grad = None

    def step() -> None:
        loss(hidden, weight, labels).backward()
        if ON_GPU:
            torch.cuda.synchronize()

    step()  # compiles
    clear()
    gradients = (hidden.numel() + weight.numel()) * hidden.itemsize / 2**20
    peak = peak_mib(step)
    benchmark.extra_info.update(peak_mib=peak, peak_mib_beyond_gradients=peak - gradients)
    benchmark.group = "x".join(map(str, shape))
    benchmark.pedantic(step, setup=clear, rounds=10 if ON_GPU else 3)
