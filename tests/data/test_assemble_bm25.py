"""Against BM25 in float64, written as the formula stands."""

import importlib.util

import numpy as np
import pytest

from lrk.data.assemble import Assembly, assemble
from lrk.data.assemble.bm25 import TERMS, Bm25

VOCABULARY = 90


def reference(query: np.ndarray, texts: list[np.ndarray]) -> np.ndarray:
    """(N,) float64 scores of a query whose terms are all used."""
    lengths = np.array([len(text) for text in texts])
    scores = np.zeros(len(texts))
    for term in np.unique(query):
        counts = np.array([(text == term).sum() for text in texts])
        found = (counts > 0).sum()
        if found < 2:
            continue
        idf = np.log(1 + (len(texts) - found + 0.5) / (found + 0.5))
        saturated = counts / (counts + 1.5 * (1 - 0.75 + 0.75 * lengths / lengths.mean()))
        scores += idf * saturated
    return scores


@pytest.fixture
def texts() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [
        (VOCABULARY * generator.random(generator.integers(1, 60)) ** 2).astype(np.int32)
        for _ in range(120)
    ]


def index_of(texts: list[np.ndarray], rank: np.ndarray | None = None) -> Bm25:
    return Bm25(texts, len(texts), VOCABULARY, np.arange(len(texts)) if rank is None else rank)


def test_the_order_is_that_of_the_scores(texts):
    index = index_of(texts)
    for number in range(0, 120, 7):
        scores = reference(texts[number], texts)
        allowed = np.ones(len(texts), bool)
        allowed[number::5] = False
        found = list(index.nearest(texts[number], allowed))
        assert sorted(found) == np.flatnonzero(allowed).tolist()
        ordered = scores[found]
        assert (np.diff(ordered) <= 1e-5 * ordered.max()).all()


def test_equal_scores_and_none_stand_in_the_order_of_rank(texts):
    rank = np.random.default_rng(2).permutation(6)
    same = [np.array([1, 2, 3], np.int32)] * 3 + [np.array([8, 9], np.int32)] * 3
    found = list(index_of(same, rank).nearest(np.array([1, 2], np.int32), np.ones(6, bool)))
    assert found == [
        *sorted(range(3), key=rank.__getitem__),
        *sorted((3, 4, 5), key=rank.__getitem__),
    ]
    nothing = list(index_of(same, rank).nearest(np.array([50], np.int32), np.ones(6, bool)))
    assert nothing == sorted(range(6), key=rank.__getitem__)


def test_a_query_has_its_heaviest_terms():
    generator = np.random.default_rng(3)
    texts = [generator.integers(0, 400, 300).astype(np.int32) for _ in range(30)]
    index = Bm25(texts, 30, 400, np.arange(30))
    text = texts[0]
    terms = index.terms(text)
    assert len(terms) == TERMS
    assert (np.diff(terms) > 0).all()
    frequencies = np.array([sum(term in other for other in texts) for term in range(400)])
    kinds, counts = np.unique(text, return_counts=True)
    weight = counts * np.log(1 + (30 - frequencies[kinds] + 0.5) / (frequencies[kinds] + 0.5))
    lightest = weight[np.isin(kinds, terms)].min()
    assert (weight[~np.isin(kinds, terms)] <= lightest).all()
    assert len(Bm25(texts[:1], 1, 400, np.arange(1)).terms(text)) == 0, "no other text has them"


def test_without_the_package(monkeypatch, tokenizer, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "bm25s" else find(name)
    )
    with pytest.raises(ValueError, match=r"bm25s, which is not installed: pip install .bm25s>=0"):
        assemble(Assembly(["x"], "neighbours"), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
