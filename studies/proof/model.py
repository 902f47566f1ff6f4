"""The tiny Llama of the study: made, pretrained, extended, measured."""

import copy
import hashlib
import json
from typing import Any

import torch
from rich.progress import track
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.hf.distillation import Distillation, last_hidden
from lrk.rope_factors import RopeFactors
from lrk.rope_scaling import RopePlan
from lrk.train.extension import extend
from studies.proof.methods import TARGET, WINDOW, Method
from studies.proof.task import SPAN, STATEMENT, TASKS, VOCAB, Batch, cycles, mixed, quotes
from studies.proof.task import segment_lengths as segments

TOKENS_PER_STEP = 3072
"""24 samples of the window, 10 of 30 % of the target, 3 of the target."""
PRETRAINING_STEPS, PRETRAINING_RATE = (1000, 500), 2e-3
"""First without variables, whose few labels taught a new model nothing, nor beside them quotes."""
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
    """A model that quotes and tells variables within WINDOW.

    Raises:
        RuntimeError: if it did not learn to.
    """
    model = untrained(seed)
    generator = torch.Generator().manual_seed(seed)
    batch = TOKENS_PER_STEP // WINDOW
    phases = (cycles, quotes), (cycles, *TASKS.values())
    with lrk.patched(model):
        optimizer = _Optimizer(model, PRETRAINING_RATE)
        for steps, tasks in zip(PRETRAINING_STEPS, phases, strict=True):
            for _ in track(range(steps), description=f"pretraining at {WINDOW} tokens"):
                parts = [task(batch // len(tasks), WINDOW, generator) for task in tasks]
                optimizer.step(Batch(*map(torch.cat, zip(*parts, strict=True))))
        for task in TASKS:
            right = measured(model, task, WINDOW, seed, samples=96)[0].mean().item()
            if right < 0.85:
                raise RuntimeError(f"seed {seed}: {right:.1%} of {task} right")
    return model


def version() -> str:
    """Of pretrained models: another one says that figures are of others."""
    settings = [
        *(config().to_diff_dict(), TOKENS_PER_STEP, PRETRAINING_STEPS, PRETRAINING_RATE, WARMUP),
        *(WINDOW, VOCAB, SPAN, STATEMENT, list(TASKS)),
    ]
    content = json.dumps(settings, default=str, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


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
        batch = samples_a_step(method)
        for turn in range(steps_of(method)):
            sample = mixed(batch, method.length, turn, generator)
            optimizer.step(sample, placed(method, batch, generator), method)
    return lrk.patch(model)


def samples_a_step(method: Method) -> int:
    assert method.length is not None
    return round(method.share * TOKENS_PER_STEP) // method.length


def steps_of(method: Method) -> int:
    """Fewer where a second view is read: as many FLOPs, a quarter of which are the teacher's."""
    return round(EXTENSION_STEPS * 3 / 4) if method.views else EXTENSION_STEPS


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
        self, batch: Batch, position_ids: Tensor | None = None, method: Method | None = None
    ) -> None:
        # use_cache=False is what gradient checkpointing and transformers' trainer set; only then
        # does stock attention take skipped positions for packed documents.
        options: dict[str, Any] = {}
        if method is not None and method.temperature is not None:
            options["attention_temperature"] = method.temperature
        if method is not None and method.views:
            options["distillation"] = Distillation(self._in_order(batch), method.views)
        self.model(
            input_ids=batch.input_ids,
            labels=batch.labels,
            position_ids=position_ids,
            use_cache=False,
            **options,
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adamw.step()
        self.schedule.step()
        self.adamw.zero_grad()

    @torch.no_grad()
    def _in_order(self, batch: Batch) -> Tensor:
        """(B, S, H): the last hidden states of the samples in ordinary positions."""
        return last_hidden(self.model, {"input_ids": batch.input_ids})


def placed(method: Method, batch: int, generator: Generator) -> Tensor:
    """(B, S) positions, drawn for each sample."""
    lengths = segments(method.length)
    reach = round(method.reach * TARGET)

    def drawn() -> Tensor:
        share = method.contiguous_share
        if share and torch.rand((), generator=generator) < share:
            return torch.arange(method.length)
        return method.sampler(lengths, reach, generator)

    return torch.stack([drawn() for _ in range(batch)])


@torch.no_grad()
def measured(
    model: LlamaForCausalLM, task: str, length: int, seed: int, samples: int
) -> tuple[Tensor, Tensor]:
    """Of every token asked for, whether the model predicts it (0 or 1), and its depth; both flat.

    Ordinary positions; the same samples for every method.
    """
    model.eval()
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    at_once = max(1, 6144 // length)
    hits, depths = [], []
    for start in range(0, samples, at_once):
        batch = TASKS[task](min(at_once, samples - start), length, generator)
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        labelled = batch.labels[:, 1:] != -100
        hits.append((logits[:, :-1].argmax(-1) == batch.labels[:, 1:])[labelled])
        depths.append(batch.depth[:, 1:][labelled])
    return torch.cat(hits).float(), torch.cat(depths)
