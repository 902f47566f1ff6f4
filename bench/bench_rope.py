"""RoPE: transformers, torch.compile, Liger-Kernel (on a GPU) and lrk, side by side.

    python -m pytest bench/bench_rope.py --benchmark-json rope.json

A CPU's figures say nothing about a GPU's.
"""

import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from bench.case import MODELS
from bench.measure import DEVICE, run, timer
from lrk.frequencies import rope_frequencies
from lrk.kernels.rope import phase_increments, rope

ON_GPU = DEVICE.type == "cuda"
LENGTH = 32_768 if ON_GPU else 4096
DTYPES = [torch.bfloat16] if ON_GPU else [torch.bfloat16, torch.float32]

Rotate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@cache
def config(model: str) -> LlamaConfig:
    shape = MODELS[model]
    return LlamaConfig(
        hidden_size=shape.num_heads * shape.head_dim,
        head_dim=shape.head_dim,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )


def transformers(model: str) -> Rotate:
    """The tables and their use. A model makes the tables once for all of its layers."""
    embedding = LlamaRotaryEmbedding(config(model)).to(DEVICE)
    return lambda q, k, position_ids: apply_rotary_pos_emb(q, k, *embedding(q, position_ids))


def transformers_given_tables(model: str) -> Rotate:
    embedding = LlamaRotaryEmbedding(config(model)).to(DEVICE)
    tables = cache(lambda dtype: embedding(torch.empty(0, dtype=dtype), positions()))
    return lambda q, k, position_ids: apply_rotary_pos_emb(q, k, *tables(q.dtype))


def compiled(model: str) -> Rotate:
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs g++")
    return torch.compile(transformers(model), fullgraph=True)


def liger(model: str) -> Rotate:
    if not ON_GPU:
        pytest.skip("Liger-Kernel needs a GPU")
    if not find_spec("liger_kernel"):
        pytest.skip("liger-kernel is not installed")
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    embedding = LlamaRotaryEmbedding(config(model)).to(DEVICE)
    return lambda q, k, position_ids: liger_rotary_pos_emb(q, k, *embedding(q, position_ids))


def lrk(model: str) -> Rotate:
    increments = phase_increments(rope_frequencies(config(model)).inv_freq).to(DEVICE)
    return lambda q, k, position_ids: rope(q, k, position_ids, increments)


PROVIDERS = [transformers, transformers_given_tables, compiled, liger, lrk]


def positions() -> Tensor:
    return torch.arange(LENGTH, device=DEVICE)[None]


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
    rotate, position_ids = provider(model), positions()
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
