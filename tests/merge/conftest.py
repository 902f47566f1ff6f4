from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 48
WORDS = {f"w{i}": i for i in range(VOCABULARY)}

SaveModel = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Saves a tiny Llama with random weights; several files where `shards` is set."""

    def save(
        name: str,
        seed: int,
        dtype: torch.dtype = torch.float32,
        shards: bool = False,
        words: dict[str, int] | None = WORDS,
        **config,
    ) -> Path:
        torch.manual_seed(seed)
        shape = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
        }
        model = LlamaForCausalLM(LlamaConfig(**shape | config)).to(dtype)
        folder = tmp_path / name
        model.save_pretrained(folder, max_shard_size=20_000 if shards else "1GB")
        if words is not None:
            tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
            tokenizer.pre_tokenizer = WhitespaceSplit()
            PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
        return folder

    return save
