"""BM25: which texts are about the same, by the rare terms that they share.

The score of a text d for a query of terms t is (Robertson and Zaragoza, "The Probabilistic
Relevance Framework: BM25 and Beyond", 2009; idf as Lucene has it)

    sum_t log(1 + (N - df_t + 1/2) / (df_t + 1/2)) * tf_td / (tf_td + k1 (1 - b + b |d| / mean |d|))

with k1 = 1.5 and b = 0.75. Terms are token ids: those of prepared documents are there, need no list
of stop words, and are the same for every language and machine. What they lose is small: a rare word
is several tokens, which other words share. Scores are computed by the package bm25s (2407.03618).
"""

import importlib.util
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrk.versions import pip_install

# Terms of a query: of a text, those that weigh most by tf * idf. Lucene's MoreLikeThis takes 25
# words; a word is about two tokens. A query of all terms would mostly go over those that half of
# the texts have.
TERMS = 64

Tokens = NDArray[np.int32]


def check_installed() -> None:
    """Raise `ValueError` if bm25s is not there."""
    if importlib.util.find_spec("bm25s") is None:
        raise ValueError(f"assemble needs bm25s, which is not installed: {pip_install('bm25s')}")


class Bm25:
    """An index of N texts, in memory.

    Args:
        texts: (N of some length each) their token ids, below `vocab_size`; read three times.
        count: N.
        rank: (N,) an order of the texts, which decides between equal scores.
    """

    def __init__(
        self, texts: Iterable[Tokens], count: int, vocab_size: int, rank: NDArray[np.int64]
    ) -> None:
        import bm25s  # not installed with lrk

        corpus = SimpleNamespace(ids=_Lists(texts, count), vocab={t: t for t in range(vocab_size)})
        self._index: Any = bm25s.BM25(k1=1.5, b=0.75, method="lucene", backend="numpy")
        self._index.index(corpus, create_empty_token=False, show_progress=False)
        self._frequencies = np.diff(self._index.scores["indptr"])
        self._rank = rank

    @property
    def num_bytes(self) -> int:
        """Of the index."""
        return sum(self._index.scores[name].nbytes for name in ("data", "indices", "indptr"))

    def nearest(self, text: Tokens, allowed: NDArray[np.bool_]) -> Iterator[int]:
        """Texts in the order of their scores, then those that share no term, in that of `rank`.

        Args:
            text: (S,) the query.
            allowed: (N,) which texts may come; those that are indexed and equal to the query too.
        """
        scores = self._index.get_scores_from_ids(self.terms(text))
        for texts in (allowed & (scores > 0), allowed & (scores <= 0)):
            found = np.flatnonzero(texts)
            yield from found[np.lexsort((self._rank[found], -scores[found]))].tolist()

    def terms(self, text: Tokens) -> NDArray[np.int64]:
        """The terms of a query, increasing; none that no other text has."""
        kinds, counts = np.unique(text, return_counts=True)
        frequencies = self._frequencies[kinds]
        idf = np.log1p((len(self._rank) - frequencies + 0.5) / (frequencies + 0.5))
        weight = np.where(frequencies > 1, counts * idf, 0.0)
        leading = np.lexsort((kinds, -weight))[:TERMS]
        return np.sort(kinds[leading[weight[leading] > 0]]).astype(np.int64)


class _Lists:
    """Texts as bm25s counts their terms: iterable many times, a list at a time."""

    def __init__(self, texts: Iterable[Tokens], count: int) -> None:
        self._texts = texts
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        return (text.tolist() for text in self._texts)
