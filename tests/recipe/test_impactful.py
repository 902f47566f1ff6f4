import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from lrk.recipe import ImpactfulTokens, read_impactful, tokenizer_fingerprint


def test_a_table_is_read_as_it_was_written(byte_tokenizer, tmp_path):
    table = ImpactfulTokens.of(byte_tokenizer, [9, 3, 5], {"method": "delta"})
    path = tmp_path / "table.json"
    path.write_text(table.to_json(), encoding="utf-8")
    read = read_impactful(path, byte_tokenizer)
    assert read.token_ids.tolist() == [3, 5, 9]
    assert np.flatnonzero(read.mask()).tolist() == [3, 5, 9]
    assert len(read.mask()) == read.vocab_size == len(byte_tokenizer)
    assert read.details == {"method": "delta"}
    assert json.loads(path.read_text())["format"] == 1


def test_a_fingerprint_is_of_what_a_tokenizer_does(byte_tokenizer, space_tokenizer, tmp_path):
    byte_tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again.model_max_length = 7
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(byte_tokenizer)
    assert tokenizer_fingerprint(space_tokenizer) != tokenizer_fingerprint(byte_tokenizer)
    again.add_tokens(["山口"])
    assert tokenizer_fingerprint(again) != tokenizer_fingerprint(byte_tokenizer)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "token_ids must be a list of at least one integer"),
        ([1.5], "token_ids must be a list of at least one integer"),
        ([[1]], "token_ids must be a list of at least one integer"),
        ([1, 1, 2], "token_ids has 1 ids twice"),
        ([-1], "token_ids has -1; each must be in 0 .. 9"),
        ([3, 10], "token_ids has 10; each must be in 0 .. 9"),
    ],
)
def test_ids_that_make_no_table(ids, message):
    with pytest.raises(ValueError, match=message):
        ImpactfulTokens("x", 10, np.array(ids))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: .*No such file"),
        ("{", "cannot be read: "),
        ("[]", "is no table of format 1"),
        ('{"format": 2}', "is no table of format 1"),
        ('{"format": 1, "tokenizer": "x", "vocab_size": 3}', "is damaged: 'token_ids'"),
        (
            '{"format": 1, "tokenizer": "x", "vocab_size": 3, "token_ids": [3]}',
            "is damaged: token_ids has 3; each must be in 0 .. 2",
        ),
        (
            '{"format": 1, "tokenizer": "x", "vocab_size": 3, "token_ids": [2]}',
            "is of another tokenizer than",
        ),
        (
            '{"format": 1, "tokenizer": "x", "vocab_size": 3.0, "token_ids": [2]}',
            "is damaged: vocab_size is 3.0, of type float; it must be int",
        ),
        (
            '{"format": 1, "tokenizer": null, "vocab_size": 3, "token_ids": [2]}',
            "is damaged: tokenizer is None, of type NoneType; it must be str",
        ),
        ('{"format": 1, "tokenizer": "x", "vocab_size": 3, "token_ids": [[1], 2]}', "is damaged"),
        ("[" * 100_000, "cannot be read: "),
    ],
)
def test_files_that_are_no_table(byte_tokenizer, tmp_path, text, message):
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"impactful_tokens '.*table.json' {message}"):
        read_impactful(path, byte_tokenizer)


def test_a_table_of_a_vocabulary_of_another_size_is_damaged(byte_tokenizer, tmp_path):
    """Its mask would take a byte a token, of however many it says."""
    path = tmp_path / "table.json"
    content = json.loads(ImpactfulTokens.of(byte_tokenizer, [3]).to_json())
    path.write_text(json.dumps(content | {"vocab_size": 10**15}))
    with pytest.raises(ValueError, match="is damaged: vocab_size is 1000000000000000, and its to"):
        read_impactful(path, byte_tokenizer)
