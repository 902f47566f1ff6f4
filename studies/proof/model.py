"""The tiny Llama of the study: made, pretrained, extended, measured."""

import copy

import torch
from rich.progress import track
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.rope_factors import RopeFactors
from lrk.rope_scaling import RopePlan
from lrk.train.extension import extend
from studies.proof.methods import TARGET, WINDOW, Method
from studies.proof.task import VOCAB, Batch, cycles, quotes, segment_lengths

TOKENS_PER_STEP = 3072
"""24 samples of the window, 10 of 30 % of the target, 3 of the target."""
PRETRAINING_STEPS, PRETRAINING_RATE = 1100, 2e-3
EXTENSION_STEPS, EXTENSION_RATE = 150, 1e-3
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
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def untrained(seed: int) -> LlamaForCausalLM:
    """Weights from which so small a model learns quickly.

    transformers starts every weight at a deviation of 0.02. At width 128 the layers then add next
    to nothing, and with a larger deviation for all they drown the embeddings. So embeddings get a
    deviation of 1, what a layer adds to them starts small, and the head starts near zero.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config())
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 1.0)
        model.lm_head.weight.normal_(0, 0.02)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.3)
            layer.mlp.down_proj.weight.mul_(0.3)
    return model


def pretrained(seed: int) -> LlamaForCausalLM:
    """A model that quotes within WINDOW.

    Raises:
        RuntimeError: if it did not learn to.
    """
    model = untrained(seed)
    generator = torch.Generator().manual_seed(seed)
    half = TOKENS_PER_STEP // WINDOW // 2
    with lrk.patched(model):
        optimizer = _Optimizer(model, PRETRAINING_RATE)
        for _ in track(range(PRETRAINING_STEPS), description=f"pretraining at {WINDOW} tokens"):
            parts = cycles(half, WINDOW, generator), quotes(half, WINDOW, generator)
            optimizer.step(Batch(*map(torch.cat, zip(*parts, strict=True))))
        right = measured(model, WINDOW, seed, samples=96)[0].mean().item()
    if right < 0.9:
        raise RuntimeError(f"seed {seed}: {right:.1%} right after {PRETRAINING_STEPS} steps")
    return model


def extended(
    base: LlamaForCausalLM, method: Method, seed: int, factors: RopeFactors | None = None
) -> LlamaForCausalLM:
    """A copy of `base`, extended to TARGET by a method, and patched.

    Args:
        factors: for the method whose `rope_scaling` is "longrope".
    """
    model = copy.deepcopy(base)
    if method.rope_scaling is not None:
        extend(model, TARGET, RopePlan(method.rope_scaling, factors=factors))
    if method.patched:
        lrk.patch(model)
    if method.length is not None:
        generator = torch.Generator().manual_seed(seed)
        optimizer = _Optimizer(model, EXTENSION_RATE)
        batch = TOKENS_PER_STEP // method.length
        for _ in range(EXTENSION_STEPS):
            sample = quotes(batch, method.length, generator)
            optimizer.step(sample, placed(method, batch, generator), method.temperature)
    return lrk.patch(model)


class _Optimizer:
    """AdamW at a constant rate after a warm-up, with gradients clipped to a norm of 1."""

    def __init__(self, model: LlamaForCausalLM, rate: float) -> None:
        self.model = model.train()
        self.adamw = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adamw, lambda step: min(1.0, (step + 1) / WARMUP)
        )

    def step(
        self, batch: Batch, position_ids: Tensor | None = None, temperature: float | None = None
    ) -> None:
        # use_cache=False is what gradient checkpointing and transformers' trainer set; only then
        # does stock attention take skipped positions for packed documents.
        self.model(
            input_ids=batch.input_ids,
            labels=batch.labels,
            position_ids=position_ids,
            use_cache=False,
            **({} if temperature is None else {"attention_temperature": temperature}),
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adamw.step()
        self.schedule.step()
        self.adamw.zero_grad()


def placed(method: Method, batch: int, generator: Generator) -> Tensor:
    """(B, S) positions, drawn for each sample."""
    segments = segment_lengths(method.length)
    reach = method.reach * TARGET
    return torch.stack([method.sampler(segments, reach, generator) for _ in range(batch)])


@torch.no_grad()
def measured(
    model: LlamaForCausalLM, length: int, seed: int, samples: int
) -> tuple[Tensor, Tensor]:
    """Of every quoted token, whether the model predicts it (0 or 1), and its depth; both flat.

    Ordinary positions; the same samples for every method.
    """
    model.eval()
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    at_once = max(1, 6144 // length)
    hits, depths = [], []
    for start in range(0, samples, at_once):
        batch = quotes(min(at_once, samples - start), length, generator)
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        labelled = batch.labels[:, 1:] != -100
        hits.append((logits[:, :-1].argmax(-1) == batch.labels[:, 1:])[labelled])
        depths.append(batch.depth[:, 1:][labelled])
    return torch.cat(hits).float(), torch.cat(depths)
