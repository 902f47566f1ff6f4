import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lrk import positions
from lrk.recipe.segments import (
    LONGEST_SEGMENT,
    clip_segments,
    segment_lengths,
    sentence_ends,
)
from studies.tiny import train_tokenizer


def sentences(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    lengths = segment_lengths(ids, sentence_ends(tokenizer))
    assert lengths.sum() == len(ids)
    assert (lengths > 0).all()
    ends = np.cumsum(lengths)
    return [
        tokenizer.decode(ids[end - length : end], clean_up_tokenization_spaces=False)
        for length, end in zip(lengths, ends, strict=True)
    ]


def test_sentences_and_lines_of_english_and_code(byte_tokenizer, english):
    assert sentences(byte_tokenizer, english) == [
        "The pass is closed.",
        " Nobody crossed it in winter!",
        " Who would?",
        " It costs 3.14 crowns, says\n",
        "os.path.join.",
        ' "Go home."',
        " he said.",
        " (They went.)",
        " The end.\n\n",
        "A new chapter begins here.\n",
    ]


def test_a_line_of_code_keeps_its_indentation_but_starts_no_segment_inside_names(byte_tokenizer):
    text = "import os.path\n\n\ndef f(x):\n    return x.y\n"
    assert "".join(sentences(byte_tokenizer, text)) == text
    assert sentences(byte_tokenizer, text)[0].strip() == "import os.path"
    assert all(part.strip() for part in sentences(byte_tokenizer, text))


def test_chinese_needs_no_space(byte_tokenizer, chinese):
    assert sentences(byte_tokenizer, chinese) == ["山口关闭了。", "冬天没有人走过！", "谁会呢？"]


def test_spaces_survive_a_tokenizer_that_drops_the_first(space_tokenizer):
    ends = sentence_ends(space_tokenizer)
    vocabulary = space_tokenizer.get_vocab()
    spaced = [token for text, token in vocabulary.items() if text.startswith("▁")]
    assert spaced
    assert ends.opens_with_space[spaced].all()
    assert sentences(space_tokenizer, "The pass is closed. Nobody crossed it.")[0].strip() == (
        "The pass is closed."
    )


def test_the_vocabulary_is_decoded_once(byte_tokenizer, monkeypatch):
    first = sentence_ends(byte_tokenizer)
    monkeypatch.setattr(type(byte_tokenizer), "batch_decode", None)
    assert sentence_ends(byte_tokenizer) is first


def test_a_vocabulary_without_sentence_ends_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"no token of the tokenizer .* ends a sentence"):
        sentence_ends(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_no_tokens_have_no_segments(byte_tokenizer):
    assert len(segment_lengths([], sentence_ends(byte_tokenizer))) == 0


@pytest.mark.parametrize("seed", range(20))
def test_clipped_segments_are_those_of_the_piece(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=rng.integers(1, 12))
    total = int(lengths.sum())
    start = int(rng.integers(0, total))
    length = int(rng.integers(1, total - start + 1))
    owner = np.repeat(np.arange(len(lengths)), lengths)[start : start + length]
    expected = np.unique(owner, return_counts=True)[1]
    np.testing.assert_array_equal(clip_segments(lengths, start, length), expected)


def test_characters_that_are_spread_over_several_tokens(english):
    """A tokenizer that has met English only has no token for any character of Chinese."""
    tokenizer = train_tokenizer([english] * 20, 300)
    ends = sentence_ends(tokenizer)
    assert {always for _, always in ends.spread} == {True, False}
    assert sentences(tokenizer, "山口关闭了。冬天没有人走过！谁会呢？没有人") == [
        "山口关闭了。",
        "冬天没有人走过！",
        "谁会呢？",
        "没有人",
    ]
    # These end one before white space alone, as a full stop does.
    assert sentences(tokenizer, "a… b…c؟ d") == ["a…", " b…c؟", " d"]
    # 丁 ends with the same byte as ！ does.
    assert "丁".encode()[-1] == "！".encode()[-1]
    assert sentences(tokenizer, "丁 丁") == ["丁 丁"]
    assert sentences(tokenizer, "！") == ["！"]


THAI = "ประตูปิดแล้วไม่มีใครข้ามมันในฤดูหนาว"


@pytest.mark.parametrize(
    "text",
    [
        THAI * 40,
        "山口关闭了冬天没有人走过" * 200,
        "var a=function(b){return b?c:d};" * 60,
        "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 40,
        "the pass was closed all winter and nobody crossed it " * 40,
        "1,2.5,abc,;" * 200,
    ],
    ids=["Thai", "Chinese", "minified", "base64", "no stops", "one line of CSV"],
)
def test_text_without_sentence_ends_has_gaps(byte_tokenizer, text):
    """It was one segment, in which no distance beyond the sample is trained."""
    ids = byte_tokenizer.encode(text, add_special_tokens=False)
    lengths = segment_lengths(ids, sentence_ends(byte_tokenizer))
    assert lengths.sum() == len(ids) > 1.5 * LONGEST_SEGMENT
    assert lengths.max() <= LONGEST_SEGMENT
    assert lengths[:-1].min() >= LONGEST_SEGMENT // 2
    drawn = positions.longrecipe(torch.from_numpy(lengths), 100 * len(ids))
    assert drawn[-1] > len(ids), "there is a gap"


def test_long_sentences_are_cut_before_white_space(byte_tokenizer):
    words = "pass closed winter nobody " * 60
    parts = sentences(byte_tokenizer, words + "END. " + words)
    assert "".join(parts) == words + "END. " + words
    assert all(part.startswith((" ", "pass")) for part in parts)
    assert sum(part.rstrip().endswith("END.") for part in parts) == 1


def test_sentences_up_to_the_longest_are_whole(byte_tokenizer):
    sentence = byte_tokenizer.encode("x" * 10, add_special_tokens=False)[:1]
    ends = sentence_ends(byte_tokenizer)
    stop = byte_tokenizer.encode("\n", add_special_tokens=False)
    for count, expected in ((LONGEST_SEGMENT - 1, 1), (LONGEST_SEGMENT, 2)):
        assert len(segment_lengths(sentence * count + stop, ends)) == expected
