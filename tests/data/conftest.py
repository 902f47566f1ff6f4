"""A tokenizer and documents for the tests of `lrk-data`."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from studies.tiny import prose, train_tokenizer


@pytest.fixture(autouse=True)
def _cached_apart(datasets_cache: None) -> None:
    """Every test here prepares data sets."""


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Saved, so that commands can name it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([prose(200, 0)], 320).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Two sources: text files, and JSON lines of which one has no text."""
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(prose(3 + 5 * number, number))
    rows = [{"text": prose(2 + number % 9, 100 + number)} for number in range(40)]
    rows[17] = {"text": " \n"}
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder), str(tmp_path / "web.jsonl")]
