"""TRL's losses beside those of a patched model: `python -m examples.trl_losses`.

A tiny Llama with random weights, float32, on the CPU. Each trainer runs the same steps three times:
stock, patched with TRL's head, and patched with lrk's (`lrk.trl`).
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl import DPOConfig, DPOTrainer, SFTConfig

import lrk
from lrk.trl import SFTTrainer, use_lrk_logprobs

Losses = list[float]
Run = Callable[[str, int], Losses]

HEADS = ("stock", "TRL's head", "lrk's head")
NOTES = [
    f"On day {day} the wind came from the {side}. " * (1 + day % 4)
    for day in range(12)
    for side in ("north", "east", "south", "west")
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare TRL's losses, stock and patched.")
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    datasets.disable_progress_bars()
    print("| trainer | loss, first and last step | patched, TRL's head | patched, lrk's head |")
    print("|---|---|---|---|")
    for name, run in RUNS.items():
        stock, *patched = (run(head, steps) for head in HEADS)
        off = " | ".join(f"{largest_difference(stock, losses):.1e}" for losses in patched)
        print(f"| {name} | {stock[0]:.4f}, {stock[-1]:.4f} | {off} |", flush=True)


def largest_difference(one: Losses, other: Losses) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<begin>", "<end>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<begin>", eos_token="<end>", pad_token="<end>"
    )


def tiny_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two layers; the same weights each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def sft_losses(head: str, steps: int, **options: Any) -> Losses:
    """Two micro-batches of four notes a step."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    if head != "stock":
        lrk.patch(model)
    kind = SFTTrainer if head == "lrk's head" else trl.SFTTrainer
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model,
            SFTConfig(folder, **_settings(steps, learning_rate=1e-2), **options),
            train_dataset=Dataset.from_dict({"text": NOTES}),
            processing_class=tokenizer,
        )
        return losses_of(trainer)


def dpo_losses(head: str, steps: int) -> Losses:
    """A note is preferred to itself backwards."""
    tokenizer = byte_tokenizer()
    model, reference = tiny_llama(tokenizer), tiny_llama(tokenizer)
    if head != "stock":
        lrk.patch(model)
        lrk.patch(reference)
    pairs = {
        "prompt": [f"Day {number}: " for number in range(len(NOTES))],
        "chosen": NOTES,
        "rejected": [note[::-1] for note in NOTES],
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model,
            reference,
            DPOConfig(folder, **_settings(steps, learning_rate=3e-4)),
            train_dataset=Dataset.from_dict(pairs),
            processing_class=tokenizer,
        )
        if head == "lrk's head":
            use_lrk_logprobs(trainer)
        return losses_of(trainer)


def _settings(steps: int, learning_rate: float) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }


def losses_of(trainer: Any) -> Losses:
    """Train, and what was logged at each step."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


RUNS: dict[str, Run] = {
    "SFT, padded": partial(sft_losses, max_length=256),
    "SFT, padding-free": partial(sft_losses, max_length=None, padding_free=True),
    "SFT, packed": partial(sft_losses, max_length=256, packing=True),
    "DPO": dpo_losses,
}


if __name__ == "__main__":
    main()
