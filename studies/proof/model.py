"""The tiny Llama of the study: made, trained on quotes, measured."""

import copy
from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.positions import scaled_rope_theta
from studies.proof.methods import TARGET, WINDOW, Method
from studies.proof.task import VOCAB, Quotes, quotes, segment_lengths

TOKENS_PER_STEP = 6144
"""48 samples of the window, 20 of 30 % of the target, 6 of the target."""
PRETRAINING_STEPS, PRETRAINING_RATE = 1200, 2e-3
EXTENSION_STEPS, EXTENSION_RATE = 150, 5e-4
WARMUP = 20


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def pretrained(seed: int, until: float = 0.99) -> LlamaForCausalLM:
    """A model that quotes within WINDOW: trained until it gets `until` of the tokens right.

    Raises:
        RuntimeError: if it did not learn to.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config())
    with lrk.patched(model):
        for _ in training(model, Method("", WINDOW), seed, PRETRAINING_STEPS, PRETRAINING_RATE):
            accuracy = right(model, WINDOW, seed, samples=32).mean().item()
            if accuracy >= until:
                return model
    raise RuntimeError(f"seed {seed}: {accuracy:.1%} right after {PRETRAINING_STEPS} steps")


def extended(base: LlamaForCausalLM, method: Method, seed: int) -> LlamaForCausalLM:
    """A copy of `base`, extended to TARGET by a method."""
    model = copy.deepcopy(base)
    if method.scales_theta:
        model = with_theta(model)
    if method.patched:
        lrk.patch(model)
    if method.length is not None:
        for _ in training(model, method, seed, EXTENSION_STEPS, EXTENSION_RATE):
            pass
    return lrk.patch(model)


def with_theta(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy whose RoPE base is raised from WINDOW to TARGET."""
    wide = config()
    head_dim = wide.hidden_size // wide.num_attention_heads
    wide.rope_parameters["rope_theta"] = scaled_rope_theta(1e4, WINDOW, TARGET, head_dim)
    wide.max_position_embeddings = TARGET
    scaled = LlamaForCausalLM(wide)
    scaled.load_state_dict(model.state_dict())
    return scaled


def training(
    model: LlamaForCausalLM, method: Method, seed: int, steps: int, rate: float
) -> Iterator[int]:
    """Train in steps of TOKENS_PER_STEP, constant rate after a warm-up; yields every 50 steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / WARMUP))
    batch = round(TOKENS_PER_STEP / method.length)
    for step in range(1, steps + 1):
        model.train()
        sample = quotes(batch, method.length, generator)
        position_ids = placed(method, batch, generator)
        model(
            input_ids=sample.input_ids,
            labels=sample.labels,
            position_ids=position_ids,
            use_cache=False,
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            yield step


def placed(method: Method, batch: int, generator: Generator) -> Tensor:
    """(B, S) positions, drawn for each sample."""
    segments = segment_lengths(method.length)
    return torch.stack([method.sampler(segments, TARGET, generator) for _ in range(batch)])


@torch.no_grad()
def right(model: LlamaForCausalLM, length: int, seed: int, samples: int) -> Tensor:
    """Which quoted tokens the model predicts, in ordinary positions: flat, 0 or 1."""
    return measured(model, length, seed, samples)[0]


@torch.no_grad()
def measured(
    model: LlamaForCausalLM, length: int, seed: int, samples: int
) -> tuple[Tensor, Tensor]:
    """Of every quoted token, whether it was predicted (0 or 1), and its depth."""
    model.eval()
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    hits, depths = [], []
    for _ in range(samples * length // TOKENS_PER_STEP + 1):
        sample: Quotes = quotes(max(1, TOKENS_PER_STEP // length), length, generator)
        logits = model(input_ids=sample.input_ids, use_cache=False).logits
        scored = sample.labels[:, 1:] != -100
        hits.append((logits[:, :-1].argmax(-1) == sample.labels[:, 1:])[scored])
        depths.append(sample.depth[:, 1:][scored])
    return torch.cat(hits).float(), torch.cat(depths)
