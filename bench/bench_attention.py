"""Attention over one causal document and over packed ones, and of one query, beside its peers.

    python -m pytest bench/bench_attention.py --benchmark-json attention.json

On a GPU FlexAttention, flash-attn and fla stand beside it where they are installed. A CPU's figures
say nothing about a GPU's.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from bench.case import MODELS
from bench.device import DEVICE
from bench.measure import run, timer
from bench.peers import Unavailable
from bench.peers.attention import Documents, fla, flash_attn, flex, lrk, one_query, sdpa
from lrk.kernels.attention import attention

ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
NUM_DOCUMENTS = {"one document": 1, "8 documents": 8}
LENGTHS = [8192, 32_768] if ON_GPU else [8192]
PROVIDERS = [lrk, sdpa, flex, flash_attn, fla]
KEYS = 131_072 if ON_GPU else 8192
OF_ONE_QUERY = {"lrk": attention, "sdpa_flash": one_query(SDPBackend.FLASH_ATTENTION)}


@pytest.mark.benchmark(timer=timer, warmup=False, min_rounds=5, max_time=2)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("layout", NUM_DOCUMENTS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("model", ["llama-3-8b", "smollm2-135m"])
def test_attention(benchmark, model, length, layout, mode, provider):
    shape = MODELS[model]
    benchmark.group = f"attention {mode}, {model}, {length} tokens, {layout}, {DTYPE}"
    # As transformers lays them out: heads inside a token.
    q, k, v = (
        torch.randn(1, length, heads, shape.head_dim, device=DEVICE, dtype=DTYPE)
        .transpose(1, 2)
        .requires_grad_()
        for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    )
    try:
        attend = provider(Documents(NUM_DOCUMENTS[layout], length))
    except Unavailable as reason:
        pytest.skip(str(reason))

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(q, k, v)

    out = attend(q, k, v) if mode == "backward" else None
    grad = torch.randn(1, length, shape.num_heads, shape.head_dim, device=DEVICE, dtype=DTYPE)
    grad = grad.transpose(1, 2)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)

    # Two products forward and five backward, of 2 FLOP, over half of each document's square.
    pairs = shape.num_heads * length * (length // NUM_DOCUMENTS[layout]) / 2
    flop = (4 if mode == "forward" else 10) * pairs * shape.head_dim
    run(
        benchmark,
        {"forward": forward, "backward": backward}[mode],
        {"tflop_per_s": flop / 1e12},
        provider=provider.__name__,
        q=list(q.shape),
        k=list(k.shape),
        dtype=str(DTYPE),
    )


@pytest.mark.benchmark(timer=timer, warmup=False, min_rounds=5, max_time=2)
@pytest.mark.parametrize("provider", OF_ONE_QUERY)
@pytest.mark.parametrize("model", ["llama-3-8b", "smollm2-135m"])
@torch.no_grad()
def test_decoding(benchmark, model, provider):
    """One query on a cache, which has to be read once."""
    shape = MODELS[model]
    benchmark.group = f"attention of one query, {model}, {KEYS} keys, {DTYPE}"
    q = torch.randn(1, shape.num_heads, 1, shape.head_dim, device=DEVICE, dtype=DTYPE)
    k, v = torch.randn(2, 1, shape.num_kv_heads, KEYS, shape.head_dim, device=DEVICE, dtype=DTYPE)
    attend = OF_ONE_QUERY[provider]
    run(
        benchmark,
        lambda: attend(q, k, v),
        {"gb_per_s": 2 * k.numel() * k.itemsize / 1e9},
        provider=provider,
        q=list(q.shape),
        k=list(k.shape),
        dtype=str(DTYPE),
    )
