"""A tiny pretrained model, a tokenizer and a corpus, all made on the spot."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lrk.train import LrkTrainingArguments
from studies.tiny import SHAPE, train_tokenizer

WORDS = [
    "the",
    "pass",
    "was",
    "closed",
    "all",
    "winter",
    "nobody",
    "crossed",
    "it",
    "before",
    "spring",
]


def prose(sentences: int, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (sentences,), generator=generator).tolist()
    picks = torch.randint(len(WORDS), (sum(lengths),), generator=generator).tolist()
    words = iter(WORDS[pick] for pick in picks)
    return " ".join(
        " ".join(next(words) for _ in range(length)).capitalize() + "." for length in lengths
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([prose(200, 0)], 320)


def tiny_config(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**SHAPE | {"pad_token_id": None} | changes)


@pytest.fixture(scope="session")
def model_folder(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of about 300, 300, 60 and 40 tokens, and one to evaluate on."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, sentences in enumerate([40, 40, 8, 5]):
        (folder / f"{number}.txt").write_text(prose(sentences, number))
    (folder / "held_out").mkdir()
    (folder / "held_out" / "4.txt").write_text(prose(30, 4))
    return folder


@pytest.fixture(autouse=True)
def quiet_datasets(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    cache = tmp_path_factory.getbasetemp() / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def options(model_folder: Path, corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a small run, as keywords."""
    return {
        "model_name_or_path": str(model_folder),
        "data": [str(corpus / "*.txt")],
        "target_length": 256,
        "train_length": 32,
        "output_dir": str(tmp_path / "run"),
        "max_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
    }


@pytest.fixture
def arguments(options: dict[str, Any]) -> Callable[..., LrkTrainingArguments]:
    def make(**changes: Any) -> LrkTrainingArguments:
        return LrkTrainingArguments(**options | changes)

    return make
