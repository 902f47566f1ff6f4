"""Scores, from their definitions: cases worked out by hand."""

import pytest

from lrk.eval.score import all_references, any_reference, effective_length, first_integer


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        (" 1234567.", ["1234567"], 1.0),
        ("12345678", ["1234567"], 1.0),  # a substring is enough
        ("123 4567", ["1234567"], 0.0),
        ("", ["1234567"], 0.0),
        ("The answer: ALPHA, beta", ["alpha", "Beta", "gamma", "delta"], 0.5),
        ("alpha alpha", ["alpha", "beta"], 0.5),
        ("one\x00two", ["one\ntwo"], 1.0),
    ],
)
def test_the_share_of_references_found(answer, references, score):
    assert all_references(answer, references) == score


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [("in Paris.", ["paris", "Lyon"], 1.0), ("in Rome", ["Paris", "Lyon"], 0.0)],
)
def test_any_reference(answer, references, score):
    assert any_reference(answer, references) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (" 417. Remember it. 9", 1.0),
        ("is 0417", 1.0),
        ("4178", 0.0),
        ("9 and 417", 0.0),
        ("417", 1.0),
        ("none", 0.0),
        ("-417", 1.0),
    ],
)
def test_the_first_integer_counts(answer, score):
    assert first_integer(answer, ["417"]) == score


@pytest.mark.parametrize(
    ("scores", "length"),
    [
        ({4096: 85.6, 8192: 85.5}, 4096),
        ({8192: 90.0, 4096: 99.0}, 8192),
        ({4096: 85.59}, None),
        ({4096: 90.0, 8192: 80.0, 16384: 90.0}, 4096),
        ({}, None),
    ],
)
def test_the_effective_length(scores, length):
    assert effective_length(scores) == length
