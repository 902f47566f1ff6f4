import math

import numpy as np
import pytest

from lrk.recipe.impactful import ImpactfulTokens
from lrk.recipe.segments import segment_lengths, sentence_ends
from lrk.recipe.selection import (
    RULES,
    Selection,
    digit_types,
    keep,
    segments_with,
    selection_of,
)

VOCABULARY = 50


def document(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random token ids in random segments; token `i` has an id of `[0, 50)`."""
    lengths = rng.integers(1, 9, size=rng.integers(2, 60)).astype(np.int32)
    return rng.integers(0, VOCABULARY, size=lengths.sum()).astype(np.int32), lengths


def types_of(*ids: int) -> np.ndarray:
    types = np.zeros(VOCABULARY, bool)
    types[list(ids)] = True
    return types


def naive(ids, lengths, types) -> list[tuple[int, int, bool]]:
    """Start, length and whether it qualifies, of each segment."""
    segments, start = [], 0
    for length in lengths.tolist():
        segments.append((start, length, any(types[i] for i in ids[start : start + length])))
        start += length
    return segments


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(25))
def test_what_every_choice_obeys(rule, seed):
    rng = np.random.default_rng(seed)
    ids, lengths = document(rng)
    types = types_of(*rng.choice(VOCABULARY, 3, replace=False))
    by_types = rule in ("impactful", "digits")
    budget = int(rng.integers(1, lengths.sum())) if lengths.sum() > 1 else 1
    selection = Selection(rule, 1000, types if by_types else None, seed)
    choice = selection.choose(ids, lengths, budget, (0, 0))

    assert len(choice.tokens) == budget == choice.segment_lengths.sum()
    assert (np.diff(choice.tokens) > 0).all(), "in order, and nothing twice"
    assert (choice.segment_lengths > 0).all()
    segments = naive(ids, lengths, types if by_types else np.ones(VOCABULARY, bool))
    whole = {start: (length, qualifies) for start, length, qualifies in segments}
    kept = np.split(choice.tokens, np.cumsum(choice.segment_lengths)[:-1])
    filled = 0
    for number, tokens in enumerate(kept):
        length, qualifies = whole[int(tokens[0])]
        assert (np.diff(tokens) == 1).all(), "a kept segment is one stretch"
        if number < len(kept) - 1:
            assert len(tokens) == length, "only the last one may be incomplete"
        filled += 0 if qualifies else len(tokens)
    qualifying = sum(length for _, length, qualifies in segments if qualifies)
    assert (choice.num_filled, choice.num_qualifying) == (filled, qualifying)
    if qualifying >= budget:
        assert filled == 0
    else:
        # All that qualify are there, but for what the end cuts off: less than the last one drawn.
        assert filled >= budget - qualifying
        assert filled - (budget - qualifying) < max(length for _, length, _ in segments)


def test_the_first_tokens_are_the_first():
    ids, lengths = document(np.random.default_rng(3))
    choice = Selection("first", 1000).choose(ids, lengths, 20, (0, 0))
    assert choice.tokens.tolist() == list(range(20))


def test_sentences_come_from_the_whole_document():
    """Every sentence that qualifies is as likely as every other; no other one is kept."""
    lengths = np.full(40, 5, np.int32)
    ids = np.zeros(200, np.int32)
    ids[2::10] = 7  # every other sentence
    selection = Selection("impactful", 1000, types_of(7))
    times, kept = 2000, np.zeros(40)
    for number in range(times):
        kept[selection.choose(ids, lengths, 50, (number, 0)).tokens[::5] // 5] += 1
    assert (kept[1::2] == 0).all()
    # Each of the 20 is among the 10 kept half of the time.
    assert np.abs(kept[::2] - times / 2).max() < 4.5 * math.sqrt(times / 4)


def test_the_draw_follows_from_seed_document_and_start():
    ids, lengths = document(np.random.default_rng(0))

    def tokens(seed: int, key: tuple[int, int]) -> list[int]:
        return Selection("random", 1000, seed=seed).choose(ids, lengths, 40, key).tokens.tolist()

    assert tokens(1, (2, 3)) == tokens(1, (2, 3))
    draws = [tokens(1, (2, 3)), tokens(0, (2, 3)), tokens(1, (3, 3)), tokens(1, (2, 0))]
    assert len(set(map(tuple, draws))) == 4


def test_keeping_by_hand():
    lengths = np.array([3, 1, 4, 2])
    kept, of_each = keep(lengths, np.array([2, 0, 3, 1]), 7)
    assert (kept.tolist(), of_each.tolist()) == ([0, 2], [3, 4])
    kept, of_each = keep(lengths, np.array([3, 2, 0, 1]), 7)
    assert (kept.tolist(), of_each.tolist()) == ([0, 2], [3, 4]), "the end is what is cut off"
    kept, of_each = keep(lengths, np.array([2, 0, 3, 1]), 8)
    assert (kept.tolist(), of_each.tolist()) == ([0, 2, 3], [3, 4, 1])
    kept, of_each = keep(lengths, np.array([1, 2, 0, 3]), 1)
    assert (kept.tolist(), of_each.tolist()) == ([1], [1])


def test_segments_with_a_type():
    with_type = segments_with(
        np.array([1, 2, 7, 3, 7, 7, 4]), np.array([2, 1, 1, 2, 1]), types_of(7)
    )
    assert with_type.tolist() == [False, True, False, True, False]


def test_digits_are_found_in_the_vocabulary(byte_tokenizer):
    text = "It costs 3 crowns. Nobody went. In 1987 it did. Who would? "
    ids = np.array(byte_tokenizer(text)["input_ids"])
    lengths = segment_lengths(ids, sentence_ends(byte_tokenizer))
    sentences = np.split(ids, np.cumsum(lengths)[:-1])
    with_digit = segments_with(ids, lengths, digit_types(byte_tokenizer))
    kept = [byte_tokenizer.decode(s) for s, k in zip(sentences, with_digit, strict=True) if k]
    assert "".join(kept).split(".")[:2] == ["It costs 3 crowns", " In 1987 it did"]


def test_selection_from_arguments(byte_tokenizer, space_tokenizer, tmp_path):
    table = tmp_path / "table.json"
    table.write_text(ImpactfulTokens.of(byte_tokenizer, [4, 2]).to_json())
    selection = selection_of("impactful", 100, byte_tokenizer, str(table), 5)
    assert selection is not None
    assert np.flatnonzero(selection.types).tolist() == [2, 4]
    assert (selection.span, selection.seed) == (100, 5)
    assert selection_of(None, 100, byte_tokenizer) is None
    with pytest.raises(ValueError, match=r"table.json' is of another tokenizer"):
        selection_of("impactful", 100, space_tokenizer, str(table))
    with pytest.raises(ValueError, match="selection is 'impactful' and impactful_tokens None"):
        selection_of("impactful", 100, byte_tokenizer)
    with pytest.raises(ValueError, match="selection is 'random' and impactful_tokens 'x'"):
        selection_of("random", 100, byte_tokenizer, "x")
    with pytest.raises(ValueError, match="selection 'best' is unknown; it must be one of impact"):
        selection_of("best", 100, byte_tokenizer)
