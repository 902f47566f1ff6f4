"""A model, a tokenizer and texts that take no time and no download."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
}
WORDS = ("the", "pass", "was", "closed", "all", "winter", "and", "nobody", "crossed", "it")


def prose(sentences: int, seed: int) -> str:
    """Sentences of random words."""
    generator = random.Random(seed)
    return " ".join(
        " ".join(generator.choices(WORDS, k=generator.randint(3, 8))).capitalize() + "."
        for _ in range(sentences)
    )


def write_corpus(folder: Path, documents: int) -> None:
    """Text files of 5 to 40 sentences."""
    folder.mkdir(parents=True)
    for number in range(documents):
        (folder / f"{number}.txt").write_text(prose(5 + number % 36, number))


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, the kind of GPT-2, Llama 3, Qwen2 and SmolLM2; adds no special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def write_model(folder: Path, window: int | None = None) -> None:
    """A Llama of two layers, hidden size 32, with 64 positions, and its tokenizer.

    With a window of so many positions it is a Mistral.
    """
    train_tokenizer([prose(200, 0)], 320).save_pretrained(folder)
    torch.manual_seed(0)
    if window is None:
        LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    else:
        config = MistralConfig(**SHAPE, sliding_window=window)
        MistralForCausalLM(config).save_pretrained(folder)
