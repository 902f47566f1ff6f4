"""Results that were changed since they were written are refused."""

import json

import pytest

from lrk.sealed import read_sealed, write_sealed

CONTENT = {"score": 86.25, "trials": [{"answer": "a\u00e9", "depth": None}], "title": "passkey"}


def test_what_is_written_is_read(tmp_path):
    write_sealed(tmp_path / "x.json", CONTENT)
    assert read_sealed(tmp_path / "x.json") == CONTENT


def blank_for_blank(one: bytes, other: bytes) -> bool:
    """Whether they are the same JSON, whose blanks between values mean nothing."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_every_flipped_bit_is_noticed(tmp_path):
    write_sealed(tmp_path / "x.json", CONTENT)
    whole = (tmp_path / "x.json").read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        (tmp_path / "x.json").write_bytes(damaged)
        if blank_for_blank(damaged, whole):
            assert read_sealed(tmp_path / "x.json") == CONTENT
            continue
        with pytest.raises(ValueError, match=r"x\.json' is damaged"):
            read_sealed(tmp_path / "x.json")


@pytest.mark.parametrize("content", ["", "[]", "1", "{}", json.dumps(CONTENT), "[" * 100_000])
def test_what_is_none_of_ours(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json' is damaged, or of a release that wrote no"):
        read_sealed(tmp_path / "x.json")
