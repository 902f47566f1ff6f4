"""The word lists of the package wonderwords, where it is installed, and files of the user's."""

import json

import pytest

from lrk.eval.haystack import Essay, read_essay
from lrk.eval.words import is_installed, read_words, ruler_words


@pytest.mark.skipif(not is_installed(), reason="needs wonderwords")
def test_the_lists_of_wonderwords():
    words = ruler_words()
    assert len(words.nouns) > 6000
    assert len(words.adjectives) > 500
    assert len(words.verbs) > 500
    assert words.all() == sorted(set(words.all()))
    assert all(word == word.strip() != "" for word in words.all())


@pytest.mark.parametrize("content", [{"1": "pear", "2": "fig", "3": "pear"}, ["pear", "fig"]])
def test_a_larger_list(tmp_path, content):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(content))
    assert read_words(path) == ("pear", "fig")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="must be a list of words"):
        read_words(path)
    with pytest.raises(ValueError, match="must be an object with the key 'text'"):
        read_essay(path)
    path.write_text('{"text": " "}')
    with pytest.raises(ValueError, match="holds no words"):
        read_essay(path)
    path.write_text("{")
    for read in (read_words, read_essay):
        with pytest.raises(ValueError, match="is not JSON"):
            read(path)
        with pytest.raises(ValueError, match="does not exist"):
            read(tmp_path / "absent")


@pytest.mark.parametrize("content", ["[]", "{}", '"pear"', '{"1": null}', '["\\ud800"]', "3"])
def test_what_holds_no_words(tmp_path, content):
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(ValueError, match=r"words '.*w.json' must be a list of words or an object"):
        read_words(tmp_path / "w.json")


def test_texts_that_are_no_unicode_are_refused_by_name(tmp_path):
    (tmp_path / "essay.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"haystack '.*essay.txt' is no text in UTF-8"):
        read_essay(tmp_path / "essay.txt")
    (tmp_path / "essay.json").write_text('{"text": "half \\ud800 a pair"}')
    with pytest.raises(ValueError, match=r"haystack '.*essay.json' is no text in UTF-8"):
        read_essay(tmp_path / "essay.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"haystack '.*deep.json' is not JSON"):
        read_essay(tmp_path / "deep.json")


def test_essays_of_both_formats(tmp_path):
    (tmp_path / "essay.json").write_text('{"text": "One\\n two. Three!"}')
    (tmp_path / "essay.txt").write_text("One\n two. Three!")
    expected = Essay(("One", "two.", "Three!"))
    assert read_essay(tmp_path / "essay.json") == read_essay(tmp_path / "essay.txt") == expected
    assert expected.sentences(2) == ["One two."]
    assert expected.sentences(4) == ["One two.", "Three!", "One"]
