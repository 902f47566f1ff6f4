import pytest
from datasets import Dataset

from lrk.recipe import tokenize


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
    tokenized = tokenize(Dataset.from_dict({"text": ["Done.<end>"]}), byte_tokenizer)
    assert tokenized[0]["input_ids"].count(byte_tokenizer.eos_token_id) == 1


def test_more_processes_give_the_same(byte_tokenizer, english):
    documents = Dataset.from_dict({"text": [english[i:] for i in range(8)]})
    one, two = tokenize(documents, byte_tokenizer), tokenize(documents, byte_tokenizer, num_proc=2)
    assert one[:] == two[:]


def test_documents_without_text_are_refused(byte_tokenizer):
    with pytest.raises(ValueError, match="none of the 2 documents holds text"):
        tokenize(Dataset.from_dict({"text": ["", " \n"]}), byte_tokenizer)
