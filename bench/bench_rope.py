"""RoPE: transformers, torch.compile, Liger-Kernel (on a GPU) and lrk, side by side.

    python -m pytest bench/bench_rope.py --benchmark-json rope.json

A CPU's figures say nothing about a GPU's.
"""

import pytest
import torch
from torch import Tensor

from bench.case import MODELS
from bench.device import DEVICE
from bench.measure import run, timer
from bench.peers import Unavailable
from bench.peers.rope import compiled, liger, lrk, transformers, transformers_given_tables

ON_GPU = DEVICE.type == "cuda"
LENGTH = 32_768 if ON_GPU else 4096
DTYPES = [torch.bfloat16] if ON_GPU else [torch.bfloat16, torch.float32]
PROVIDERS = [transformers, transformers_given_tables, compiled, liger, lrk]


@pytest.mark.benchmark(timer=timer, warmup=False, min_rounds=5, max_time=2)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", ["forward", "backward", "full"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("model", MODELS if ON_GPU else ["llama-3-8b", "smollm2-135m"])
def test_rope(benchmark, model, dtype, mode, provider):
    shape = MODELS[model]
    benchmark.group = f"rope {mode}, {model}, {LENGTH} tokens, {dtype}"
    q, k = (
        torch.randn(1, LENGTH, heads, shape.head_dim, device=DEVICE, dtype=dtype)
        .transpose(1, 2)
        .requires_grad_(mode != "forward")
        for heads in (shape.num_heads, shape.num_kv_heads)
    )
    try:
        rotate = provider(shape)
    except Unavailable as reason:
        pytest.skip(str(reason))
    position_ids = torch.arange(LENGTH, device=DEVICE)[None]
    grads = torch.randn_like(q), torch.randn_like(k)

    def forward() -> tuple[Tensor, ...]:
        # Leaves may not be rotated in place, as Liger does.
        return rotate(q.view_as(q), k.view_as(k), position_ids)

    def full() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), (q, k), grads)

    outputs = forward() if mode == "backward" else None

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, (q, k), grads, retain_graph=True)

    elements = q.numel() + k.numel()
    bytes_moved = (2 * elements * dtype.itemsize + 8 * LENGTH) * (2 if mode == "full" else 1)
    run(
        benchmark,
        {"forward": forward, "backward": backward, "full": full}[mode],
        {"gb_per_s": bytes_moved / 1e9},
        provider=provider.__name__,
        q=list(q.shape),
        k=list(k.shape),
        dtype=str(dtype),
    )
