"""A bounded look at the data."""

import json

import numpy as np
import pytest

from lrk.data.command import main as lrk_data
from lrk.train.auto_recipe import survey as module
from lrk.train.auto_recipe.survey import survey
from tests.train.conftest import prose


def test_documents_are_counted_in_tokens(corpus, tokenizer):
    found = survey([str(corpus / "*.txt")], tokenizer)
    texts = [(corpus / f"{number}.txt").read_text() for number in range(4)]
    expected = [len(tokenizer(text).input_ids) + 1 for text in texts]  # and the end of the text
    assert found.lengths.tolist() == expected
    assert (found.is_text, found.is_whole, found.tokens) == (True, True, sum(expected))
    long = sorted(expected)[-1]
    assert found.documents_of(long) == expected.count(long)
    assert found.share_of_tokens(long) == pytest.approx(long * expected.count(long) / sum(expected))


def test_it_stops_at_characters_and_at_documents(corpus, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "CHARACTERS", 500)
    found = survey([str(corpus / "*.txt")], tokenizer)
    assert len(found.lengths) == 1
    assert (found.tokens, found.is_whole) == (None, False)
    whole = (corpus / "0.txt").read_text()
    assert found.lengths[0] == len(tokenizer(whole[:500]).input_ids) + 1
    monkeypatch.setattr(module, "CHARACTERS", 2**24)
    monkeypatch.setattr(module, "DOCUMENTS", 3)
    found = survey([str(corpus / "*.txt")], tokenizer)
    assert (len(found.lengths), found.tokens) == (3, None)


def test_conversations(tmp_path, tokenizer):
    rows = [{"prompt": prose(2, n), "completion": prose(1, n)} for n in range(3)]
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = survey([str(path)], tokenizer)
    assert not found.is_text
    assert len(found.lengths) == 3


def test_prepared_data_are_read_where_they_lie(corpus, model_folder, tokenizer, tmp_path):
    folder = tmp_path / "prepared"
    options = ["--tokenizer", str(model_folder), "--output_dir", str(folder)]
    assert lrk_data(["prepare", "--data", str(corpus / "*.txt"), *options]) == 0
    found = survey([str(folder)], tokenizer)
    expected = survey([str(corpus / "*.txt")], tokenizer)
    np.testing.assert_array_equal(np.sort(found.lengths), np.sort(expected.lengths))
    assert (found.tokens, found.is_text) == (expected.tokens, True)


def test_nothing_to_read(tmp_path, tokenizer):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="hold no text"):
        survey([str(tmp_path / "empty.txt")], tokenizer)
