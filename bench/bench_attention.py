"""Attention over one causal document and over packed ones, beside its peers.

    python -m pytest bench/bench_attention.py --benchmark-json attention.json

On a GPU FlexAttention, flash-attn and fla stand beside it where they are installed. A CPU's figures
say nothing about a GPU's.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.case import MODELS
from bench.measure import DEVICE, run, timer
from lrk.kernels.attention import attention

ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
NUM_DOCUMENTS = {"one document": 1, "8 documents": 8}
LENGTHS = [8192, 32_768] if ON_GPU else [8192]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Documents(NamedTuple):
    """Equal documents end to end in one row."""

    count: int
    length: int  # of all together

    @property
    def ends(self) -> Tensor:
        step = self.length // self.count
        return torch.arange(0, self.length + 1, step, dtype=torch.int32, device=DEVICE)

    @property
    def index(self) -> Tensor:
        return torch.arange(self.length, device=DEVICE) // (self.length // self.count)


def lrk(documents: Documents) -> Attend:
    ends = documents.ends if documents.count > 1 else None
    return lambda q, k, v: attention(q, k, v, cu_seqlens=ends)


def sdpa(documents: Documents) -> Attend:
    """Causal over everything; documents need a mask of S x S."""
    if documents.count == 1:
        return lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )
    index = documents.index
    mask = (index[:, None] == index).tril()
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def flex(documents: Documents) -> Attend:
    _need(ON_GPU, "FlexAttention is compared on a GPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    index, length = documents.index, documents.length

    def visible(batch, head, i, j):
        return (index[i] == index[j]) & (i >= j)

    mask = create_block_mask(visible, None, None, length, length, device=str(DEVICE))
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def flash_attn(documents: Documents) -> Attend:
    _need(ON_GPU, "flash-attn needs a GPU")
    _need(find_spec("flash_attn"), "flash-attn is not installed")
    from flash_attn import flash_attn_varlen_func

    ends, longest = documents.ends, documents.length // documents.count

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = (x[0].transpose(0, 1) for x in (q, k, v))
        out = flash_attn_varlen_func(*tokens, ends, ends, longest, longest, causal=True)
        return out.transpose(0, 1)[None]

    return attend


def fla(documents: Documents) -> Attend:
    _need(ON_GPU, "fla needs a GPU")
    _need(find_spec("fla"), "fla-core is not installed")
    from fla.ops.attn.parallel import parallel_attn

    ends = documents.ends.long()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = (x.transpose(1, 2) for x in (q, k, v))
        return parallel_attn(*tokens, cu_seqlens=ends).transpose(1, 2)

    return attend


PROVIDERS = [lrk, sdpa, flex, flash_attn, fla]


def _need(there: object, reason: str) -> None:
    if not there:
        pytest.skip(reason)


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
    documents = Documents(NUM_DOCUMENTS[layout], length)
    attend = provider(documents)

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(q, k, v)

    out = attend(q, k, v) if mode == "backward" else None
    grad = torch.randn(1, length, shape.num_heads, shape.head_dim, device=DEVICE, dtype=DTYPE)
    grad = grad.transpose(1, 2)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)

    # Two products forward and five backward, of 2 FLOP, over half of each document's square.
    pairs = shape.num_heads * length * (length // documents.count) / 2
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
