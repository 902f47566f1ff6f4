"""Tokenizers made on the spot: the tests of the recipe need no download."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from studies.tiny import train_tokenizer

ENGLISH = (
    "The pass is closed. Nobody crossed it in winter! Who would? It costs 3.14 crowns, says\n"
    'os.path.join. "Go home." he said. (They went.) The end.\n\nA new chapter begins here.\n'
)
CHINESE = "山口关闭了。冬天没有人走过！谁会呢？"


@pytest.fixture(autouse=True)
def _cached_apart(datasets_cache: None) -> None:
    """Every test here prepares data sets."""


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, the kind of GPT-2, Llama 3, Qwen2 and SmolLM2; adds no special tokens."""
    return train_tokenizer([ENGLISH, CHINESE] * 20, 600)


@pytest.fixture(scope="session")
def space_tokenizer() -> PreTrainedTokenizerFast:
    """Spaces as `▁` and dropped at the start of a text, the kind of Llama 2 and Mistral."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([ENGLISH, CHINESE] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def english() -> str:
    return ENGLISH


@pytest.fixture(scope="session")
def chinese() -> str:
    return CHINESE
