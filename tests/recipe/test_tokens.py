from itertools import count

import pytest
from datasets import Dataset

from lrk.recipe import SampleStream, load_documents, tokenize


def test_documents_close_with_the_end_token_and_segments_cover_them(byte_tokenizer, english):
    texts = [english, "", "One. Two. Three.", None, "  \n"]
    tokenized = tokenize(Dataset.from_dict({"text": texts}), byte_tokenizer)
    assert tokenized.column_names == ["input_ids", "segment_lengths"]
    assert len(tokenized) == 2
    for row, text in zip(tokenized, [english, "One. Two. Three."], strict=True):
        assert row["input_ids"][-1] == byte_tokenizer.eos_token_id
        assert byte_tokenizer.decode(row["input_ids"][:-1]) == text
        assert sum(row["segment_lengths"]) == len(row["input_ids"])
    assert len(tokenized[1]["segment_lengths"]) == 3


def test_the_end_token_is_not_doubled(byte_tokenizer):
    documents = Dataset.from_dict({"text": ["Done.<end>"]})
    tokenized = tokenize(documents, byte_tokenizer, split_special_tokens=False)
    assert tokenized[0]["input_ids"].count(byte_tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("text", ["The <end> is near.", "It ends.<end>", "<end><end>"])
def test_special_tokens_in_a_text_are_text(byte_tokenizer, text):
    """They ended the document in its middle."""
    documents = Dataset.from_dict({"text": [text]})
    for split, expected in ((True, 1), (False, max(1, text.count("<end>") + text.endswith("r.")))):
        (row,) = tokenize(documents, byte_tokenizer, split_special_tokens=split)
        assert row["input_ids"].count(byte_tokenizer.eos_token_id) == expected
        if split:
            assert byte_tokenizer.decode(row["input_ids"][:-1]) == text
    whole = tokenize(documents, byte_tokenizer)[0]["input_ids"]
    sample = next(SampleStream(documents, byte_tokenizer, len(whole)).one_pass(count()))
    assert sample["input_ids"].tolist() == whole


def test_more_processes_give_the_same(byte_tokenizer, english):
    documents = Dataset.from_dict({"text": [english[i:] for i in range(8)]})
    one, two = tokenize(documents, byte_tokenizer), tokenize(documents, byte_tokenizer, num_proc=2)
    assert one[:] == two[:]


def test_documents_without_text_are_refused(byte_tokenizer):
    with pytest.raises(ValueError, match="none of the 2 documents holds text"):
        tokenize(Dataset.from_dict({"text": ["", " \n"]}), byte_tokenizer)


def test_another_release_does_not_take_the_tokens_of_this_one(
    byte_tokenizer, tmp_path, monkeypatch
):
    (tmp_path / "a.txt").write_text("The pass is closed. " * 9)
    documents = load_documents([str(tmp_path / "a.txt")])
    before = tokenize(documents, byte_tokenizer)
    monkeypatch.setattr("lrk.recipe.segments.LONGEST_SEGMENT", 4)
    assert tokenize(documents, byte_tokenizer)[:] == before[:], "out of the cache"
    monkeypatch.setattr("lrk.recipe.tokens.code_hash", lambda: "of another release")
    assert tokenize(documents, byte_tokenizer)[:] != before[:]
