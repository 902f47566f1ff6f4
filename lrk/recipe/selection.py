"""Selection: which sentences of a long document become the text of a short sample.

A sample has `Ls` tokens, and its text comes from up to `Lt` tokens of a document, the window that
the sample is spread over. Sentences that qualify are taken before those that do not; order is kept,
nothing is taken twice, and the sample has exactly `Ls` tokens (LongRecipe, 2409.00509, 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.recipe.impactful import read_impactful
from lrk.recipe.segments import decoded_vocabulary

# Rules that choose by the text alone. "positions" chooses when positions are drawn: see Placement.
RULES = ("impactful", "digits", "random", "first")
POSITIONS = "positions"
SELECTIONS = (*RULES, POSITIONS)
# Samplers whose gaps are at ends of sentences, so that the text has to be there before they draw.
BETWEEN_SENTENCES = ("longrecipe", "longrecipe_released")


class Choice(NamedTuple):
    """What is kept of S tokens.

    Attributes:
        tokens: (Ls,) int64, indices of the kept tokens, strictly increasing.
        segment_lengths: (K,) int32, tokens of each kept sentence; they sum to Ls.
        num_qualifying: how many of the S tokens stand in sentences that qualify.
        num_filled: how many of the kept tokens stand in sentences that do not.
    """

    tokens: NDArray[np.int64]
    segment_lengths: NDArray[np.int32]
    num_qualifying: int
    num_filled: int


@dataclass(frozen=True)
class Selection:
    """A rule, and how much of a document one sample is chosen from.

    Attributes:
        rule: `impactful` and `digits` prefer sentences with a token of `types`; `random` takes any
            sentences, `first` the first ones; `positions` leaves the choice to `Placement`.
        span: `Lt`; a longer document gives several samples.
        types: (V,) bool, for `impactful` and `digits`: token types that make a sentence qualify.
        seed: the draw follows from (seed, document, start of the stretch), and nothing else.
    """

    rule: str
    span: int
    types: NDArray[np.bool_] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in SELECTIONS:
            raise ValueError(
                f"selection {self.rule!r} is unknown; it must be one of {', '.join(SELECTIONS)}"
            )
        if (self.rule in ("impactful", "digits")) != (self.types is not None):
            raise ValueError(f"selection {self.rule!r}: types belong to impactful and digits alone")

    def choose(
        self,
        token_ids: NDArray[np.integer],
        segment_lengths: NDArray[np.integer],
        budget: int,
        key: Sequence[int],
    ) -> Choice:
        """Choose `budget` of S tokens.

        Args:
            token_ids: (S,), more than `budget`, at most `span`.
            segment_lengths: (N,), their sum is S.
            budget: `Ls`.
            key: of the draw: document and start.
        """
        count = len(segment_lengths)
        qualifies = np.ones(count, bool)
        if self.types is not None:
            qualifies = segments_with(token_ids, segment_lengths, self.types)
        order = np.arange(count)
        if self.rule != "first":
            order = np.random.default_rng([self.seed, *key]).permutation(count)
            drawn = qualifies[order]
            order = np.concatenate([order[drawn], order[~drawn]])
        kept, lengths = keep(segment_lengths, order, budget)
        return Choice(
            tokens=_tokens_of(kept, lengths, segment_lengths),
            segment_lengths=lengths,
            num_qualifying=int(segment_lengths[qualifies].sum()),
            num_filled=int(lengths[~qualifies[kept]].sum()),
        )


def selection_of(
    rule: str | None,
    span: int,
    tokenizer: PreTrainedTokenizerBase,
    impactful_tokens: str | None = None,
    seed: int = 0,
) -> Selection | None:
    """The selection that arguments ask for; None where `rule` is None.

    Args:
        impactful_tokens: path of the table, for the rule `impactful` alone.

    Raises:
        ValueError: as `check_table`; for an unknown rule, or a table that is not of this tokenizer.
    """
    check_table(rule, impactful_tokens)
    if rule is None:
        return None
    types = None
    if impactful_tokens is not None:
        types = read_impactful(impactful_tokens, tokenizer).mask()
    elif rule == "digits":
        types = digit_types(tokenizer)
    return Selection(rule, span, types, seed)


def check_table(rule: str | None, impactful_tokens: str | None) -> None:
    """Refuse the rule `impactful` without a table, and another rule with one."""
    if (rule == "impactful") != (impactful_tokens is not None):
        raise ValueError(
            f"selection is {rule!r} and impactful_tokens {impactful_tokens!r}; the table belongs "
            "to selection 'impactful', which needs it"
        )


def segments_with(
    token_ids: NDArray[np.integer], segment_lengths: NDArray[np.integer], types: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(N,) bool: which segments hold a token of a type of `types` (V,)."""
    starts = np.cumsum(segment_lengths) - segment_lengths
    return np.logical_or.reduceat(types.take(token_ids), starts)


def digit_types(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.bool_]:
    """(V,) bool: tokens with a digit. LongRecipe's released code keeps sentences by this."""
    return np.array([any(map(str.isdigit, text)) for text in decoded_vocabulary(tokenizer)])


def keep(
    segment_lengths: NDArray[np.integer], order: NDArray[np.integer], budget: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Take segments in `order` until they hold `budget` tokens, lay them in the document's order.

    What is too much is cut off at the end, so that only the last kept segment can lack its end:
    every gap that a sampler opens between segments is where one ended in the document.

    Returns:
        Indices (K,) of the kept segments, increasing, and the tokens (K,) that are kept of each.
    """
    needed = np.searchsorted(np.cumsum(segment_lengths[order]), budget) + 1
    kept = np.sort(order[:needed])
    ends = np.cumsum(segment_lengths[kept])
    inside = int(np.searchsorted(ends, budget)) + 1
    ends = np.minimum(ends[:inside], budget)
    return kept[:inside], np.diff(ends, prepend=0).astype(np.int32)


def _tokens_of(
    kept: NDArray[np.int64],
    lengths: NDArray[np.int32],
    segment_lengths: NDArray[np.integer],
) -> NDArray[np.int64]:
    """Indices of the first `lengths` tokens of each kept segment."""
    starts = np.cumsum(segment_lengths, dtype=np.int64)[kept] - segment_lengths[kept]
    before = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
