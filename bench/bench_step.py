"""A training step of a whole model: transformers as it comes, and patched by lrk, in one run.

    python -m pytest bench/bench_step.py --benchmark-json step.json

SmolLM2-135M's shape with random weights, in float32 on a CPU and in bfloat16 on a GPU; forward and
backward, without the optimizer, which is the same for both.
"""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from bench.case import MODELS
from bench.device import DEVICE
from bench.measure import run, timer

ON_GPU = DEVICE.type == "cuda"
SHAPE = MODELS["smollm2-135m"]


def stock(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.set_attn_implementation("sdpa")
    return model


PROVIDERS: list[Callable[[LlamaForCausalLM], LlamaForCausalLM]] = [stock, lrk.patch]


def smollm2() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SHAPE.vocab,
        hidden_size=SHAPE.hidden,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=SHAPE.num_heads,
        num_key_value_heads=SHAPE.num_kv_heads,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
    )
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    return LlamaForCausalLM(config).to(DEVICE, dtype)


@pytest.mark.benchmark(timer=timer, warmup=False, min_rounds=5, max_time=2)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("length", [1024, 2048, 16_384] if ON_GPU else [1024, 2048])
def test_step(benchmark, length, provider):
    benchmark.group = f"training step, smollm2-135m, {length} tokens"
    model = provider(smollm2())
    tokens = torch.randint(0, SHAPE.vocab, (1, length), device=DEVICE)

    def step() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        model.zero_grad()

    work = {"tokens_per_s": float(length)}
    run(benchmark, step, work, provider=provider.__name__, length=length)
