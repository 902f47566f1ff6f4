"""The small Llama of the study: made and pretrained."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.atomic import atomic_folder
from studies.real_text.corpus import Corpus
from studies.real_text.repeats import repeats
from studies.real_text.scale import Scale

PRETRAINING_RATES = 2e-3, 1.5e-3
"""On text, and on text and repeats."""
TEXT_HORIZON = 4 / 3
"""The first rate is that of a cosine which would be at 0 after so many times its steps."""
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.1
SAVED_EVERY = 100
"""Steps between two checkpoints."""


def config(scale: Scale) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=scale.vocabulary,
        hidden_size=scale.hidden,
        intermediate_size=scale.intermediate,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads,
        num_key_value_heads=scale.key_value_heads,
        max_position_embeddings=scale.window,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        initializer_range=0.04,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def base_model(folder: Path, corpus: Corpus, scale: Scale) -> Path:
    """The pretrained model's folder; made unless an earlier start has left it there.

    First on text, then on as much text and text that repeats. An interrupted start goes on from its
    last checkpoint, beside the folder.
    """
    if folder.exists():
        return folder
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(scale))
    batch, steps = scale.pretraining_samples, scale.text_steps
    samples = _shuffled_windows(corpus.training, scale.window)
    with lrk.patched(model):
        for phase, count in enumerate((steps, scale.repeat_steps)):
            horizon = round(TEXT_HORIZON * count) if phase == 0 else count
            optimizer = Optimizer(model, PRETRAINING_RATES[phase], horizon)
            checkpoint = folder.with_name(f"{folder.name}.phase-{phase}")
            done = optimizer.resume(checkpoint)
            for step in track(range(done, count), description=f"pretraining, {phase + 1} of 2"):
                first = (phase * steps + step) * batch
                text = samples[torch.arange(first, first + batch) % len(samples)]
                optimizer.step(**_half_repeated(text, step) if phase else _plain(text))
                if (step + 1) % SAVED_EVERY == 0 or step + 1 == count:
                    optimizer.save(checkpoint, step + 1)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
    return folder


def _plain(text: Tensor) -> dict[str, Tensor]:
    return {"input_ids": text, "labels": text}


def _half_repeated(text: Tensor, seed: int) -> dict[str, Tensor]:
    half = len(text) // 2
    quoting = repeats(text[:half], torch.Generator().manual_seed(seed))
    parts = (quoting, (text[half:], text[half:]))
    input_ids, labels = map(torch.cat, zip(*parts, strict=True))
    return {"input_ids": input_ids, "labels": labels}


class Optimizer:
    """AdamW: a warm-up, then a cosine to 0; gradients clipped to a norm of 1."""

    def __init__(self, model: LlamaForCausalLM, rate: float, steps: int) -> None:
        self.model = model.train()
        weights = list(model.parameters())
        groups = [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, _rate(steps))

    def step(self, **inputs: Tensor | object) -> float:
        """Returns: the loss before it."""
        loss = self.model(use_cache=False, **inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adamw.step()
        self.schedule.step()
        self.adamw.zero_grad()
        return float(loss.detach())

    def save(self, folder: Path, step: int) -> None:
        parts = {"model": self.model, "adamw": self.adamw, "schedule": self.schedule}
        with atomic_folder(folder) as temporary:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save(states | {"step": step}, temporary / "state.pt")

    def resume(self, folder: Path) -> int:
        """Returns: the steps that are done."""
        if not folder.exists():
            return 0
        states = torch.load(folder / "state.pt", weights_only=True)
        self.model.load_state_dict(states["model"])
        self.adamw.load_state_dict(states["adamw"])
        self.schedule.load_state_dict(states["schedule"])
        return int(states["step"])


def _rate(steps: int) -> Callable[[int], float]:
    warmup = max(1, round(WARMUP_SHARE * steps))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))

    return rate


def _shuffled_windows(tokens: Tensor, window: int) -> Tensor:
    """(N, window): the text in pieces, in a random order."""
    pieces = tokens[: len(tokens) // window * window].view(-1, window)
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))
    return pieces[order]
