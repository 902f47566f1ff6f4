"""Logits of observed tokens: from all logits of a text, and by `token_logits`, in one run.

    python -m pytest bench/bench_analysis.py --benchmark-json analysis.json

SmolLM2-135M's shape with random weights, in float32 on a CPU and in bfloat16 on a GPU. An analysis
is two such passes over each sample; the counting afterwards is the same for both.
"""

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import lrk
from bench.bench_step import ON_GPU, SHAPE, smollm2, stock
from bench.device import DEVICE
from bench.measure import run, timer
from lrk.analysis.scores import token_logits
from lrk.kernels.cross_entropy import token_logprobs


@torch.no_grad()
def from_all_logits(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """As one writes it down: the text's logits, of which one in V is kept."""
    logits = model(tokens[None], use_cache=False).logits[0, :-1].float()
    return logits.gather(-1, tokens[1:, None])[:, 0].cpu()


PROVIDERS = {"all logits": (stock, from_all_logits), "lrk": (lrk.patch, token_logits)}


@pytest.mark.benchmark(timer=timer, warmup=False, min_rounds=3, max_time=1)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("length", [1024, 8192, 32_768] if ON_GPU else [512, 1024])
def test_logits_of_observed_tokens(benchmark, length, provider):
    benchmark.group = f"logits of observed tokens, smollm2-135m, {length} tokens"
    prepare, compute = PROVIDERS[provider]
    model = prepare(smollm2().eval())
    tokens = torch.randint(0, SHAPE.vocab, (length,), device=DEVICE)
    work = {"tokens_per_s": float(length)}
    run(benchmark, lambda: compute(model, tokens), work, provider=provider, length=length)


@pytest.mark.benchmark(timer=timer, warmup=False, min_rounds=3, max_time=1)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("length", [1024, 4096])
def test_the_head_alone(benchmark, length, provider):
    """What the whole model hides: memory does not depend on the width, so it is small here."""
    benchmark.group = f"logits of observed tokens, the head alone, {length} tokens"
    hidden = torch.randn(length, 64, device=DEVICE)
    weight = torch.randn(SHAPE.vocab, 64, device=DEVICE)
    tokens = torch.randint(0, SHAPE.vocab, (length,), device=DEVICE)

    @torch.no_grad()
    def compute() -> Tensor:
        if provider == "lrk":
            return token_logprobs(hidden, weight, tokens, ignore_index=None).label_logit
        return (hidden @ weight.T).gather(-1, tokens[:, None])

    run(benchmark, compute, {"tokens_per_s": float(length)}, provider=provider, length=length)
