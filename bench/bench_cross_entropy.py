"""Time and peak memory of linear cross-entropy, forward and backward, beside its peers.

    python -m pytest bench/bench_cross_entropy.py --benchmark-json=cross_entropy.json
    python -m pytest bench/bench_cross_entropy.py -k "4096x576x49152 and not compile"

On a machine that does other work too, measure the time of the processor instead of the clock's:

    OMP_NUM_THREADS=1 python -m pytest bench/bench_cross_entropy.py \
        --benchmark-timer=time.process_time

`peak_mib` in the report is the peak during one step over what was allocated before: the gradients
and everything temporary. On a CPU it is the growth of the resident set, so an own process for each
case (`-k`) is more exact.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lrk.kernels.cross_entropy import linear_cross_entropy

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
# (tokens, hidden size, vocabulary): SmolLM2, Llama 2 and Mistral, Llama 3, and the latter at 32k.
SHAPES = [(4096, 576, 49_152), (2048, 4096, 32_000)]
if ON_GPU:
    SHAPES += [(4096, 4096, 128_256), (32_768, 4096, 128_256)]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """As transformers' models: logits in the model's dtype, the loss from a float32 copy."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def torch_chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, options=options)


def cut_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy as cut

    return cut(hidden, weight, labels, impl="cce" if ON_GPU else "torch_compile")


def liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(weight, hidden, labels)


PROVIDERS: dict[str, Loss] = {
    "lrk": linear_cross_entropy,
    "torch_chunked": torch_chunked,
    "eager": eager,
    "compile": torch.compile(eager),
    "cut_cross_entropy": cut_cross_entropy,
    "liger": liger,
}
MODULES = {"cut_cross_entropy": "cut_cross_entropy", "liger": "liger_kernel"}


def resident_mib(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (highest since the last reset) of this process, on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_mib(step: Callable[[], None]) -> float:
    """Highest memory during `step` over that before it."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the highest resident size
    before = resident_mib("VmRSS")
    step()
    return resident_mib("VmHWM") - before


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_linear_cross_entropy(provider: str, shape: tuple[int, int, int], benchmark) -> None:
    if provider == "torch_chunked" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("PyTorch has a chunked loss from 2.13 on")
    if provider in MODULES and importlib.util.find_spec(MODULES[provider]) is None:
        pytest.skip(f"{provider} is not installed: pip install 'lrk[bench]'")
    if provider == "liger" and not ON_GPU:
        pytest.skip("Liger has no CPU path")
    tokens, width, vocab = shape
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=DTYPE, requires_grad=True)
    weight = (torch.randn(vocab, width, device=DEVICE) * width**-0.5).to(DTYPE).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), device=DEVICE)
    loss = PROVIDERS[provider]

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
