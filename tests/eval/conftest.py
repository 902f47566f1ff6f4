"""A tokenizer that knows the words of the tasks, a tiny model, and words to draw from."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lrk.eval.haystack import FILLER, Essay
from lrk.eval.materials import Materials
from lrk.eval.prompt import Encoder
from lrk.eval.words import Words
from studies.tiny import train_tokenizer

SENTENCES = [
    FILLER,
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them.",
    "I will quiz you about the important information there. What is the pass key? Remember it.",
    "A special magic number is hidden within the following text. Make sure to memorize it.",
    "One of the special magic numbers for mentioned in the provided text are uuids hidden",
    "Memorize and track the chain(s) of variable assignment hidden in the following text.",
    "Question: Find all variables that are assigned the value in the text above. VAR = VAR",
    "Answer: According to the chain(s) of variable assignment in the text above, they are:",
    "Below is a numbered list of words. In these words, some appear more often than others.",
    "Read the following coded text and track the frequency of each coded word. most frequently",
    "Do not provide any explanation. Please ignore the dots '....'. three appeared words",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES * 4, 640)


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="session")
def words() -> Words:
    """400 nouns, 40 adjectives and 40 verbs, none of which is part of another."""
    made = ["".join(letters) for letters in itertools.product("bdfg", "aeio", "klmn", "uvxz")]
    made = [f"{word}{end}" for word in made for end in ("st", "rt")][:480]
    return Words(tuple(made[:400]), tuple(made[400:440]), tuple(made[440:]))


@pytest.fixture(scope="session")
def materials(words: Words) -> Materials:
    text = " ".join(f"Sentence {number} of the essay is here." for number in range(60))
    return Materials(english=words, essay=Essay(tuple(text.split())))


def tiny_model(**changes: object) -> LlamaForCausalLM:
    options: dict = {
        "vocab_size": 640,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**options | changes)).eval()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture(scope="session")
def model_folder(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
