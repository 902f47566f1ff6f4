"""A tiny base model and an extended one, a corpus, and arguments for an analysis of them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lrk.analysis import AnalysisArguments
from studies.tiny import prose, train_tokenizer, write_corpus

WINDOW = 64


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([prose(200, 0)], 300)


@pytest.fixture(scope="session")
def models(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Folders of a base model with random weights, and of one that differs and reaches farther."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
    )
    base = LlamaForCausalLM(config)
    extended = copy.deepcopy(base)
    extended.config.max_position_embeddings = 2 * WINDOW
    for parameter in extended.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    folders = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("extended")
    for model, folder in zip((base, extended), folders, strict=True):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "corpus"
    write_corpus(folder, 12)
    return folder


@pytest.fixture(autouse=True)
def quiet_datasets(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.getbasetemp() / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture
def options(models: tuple[Path, Path], corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a small comparison, as keywords."""
    return {
        "model": str(models[0]),
        "extended": str(models[1]),
        "data": [str(corpus)],
        "output_dir": str(tmp_path / "analysis"),
        "length": 40,
        "samples": 10,
        "parts_of_speech": False,
        "min_lift": 0.5,
        "device": "cpu",
    }


@pytest.fixture
def arguments(options: dict[str, Any]) -> Callable[..., AnalysisArguments]:
    def make(**changes: Any) -> AnalysisArguments:
        return AnalysisArguments(**options | changes)

    return make
