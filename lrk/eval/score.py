"""How an answer is judged, from 0 to 1."""

import re
from collections.abc import Mapping, Sequence

# Of Llama-2-7B at 4,096 tokens: what RULER calls satisfactory (arXiv 2404.06654, section 4).
EFFECTIVE = 85.6

_CONTROL = re.compile(r"[\x00-\x1f]")
_INTEGER = re.compile(r"\d+")


def all_references(answer: str, references: Sequence[str]) -> float:
    """The share of references that occur in the answer, whatever the case: RULER's metric."""
    return sum(_occurs(answer, reference) for reference in references) / len(references)


def any_reference(answer: str, references: Sequence[str]) -> float:
    """1 if one of the references occurs in the answer: RULER's metric of question answering."""
    return float(any(_occurs(answer, reference) for reference in references))


def first_integer(answer: str, references: Sequence[str]) -> float:
    """1 if the first integer of the answer is the key: the metric of passkey retrieval."""
    found = _INTEGER.search(answer)
    return float(found is not None and int(found.group()) == int(references[0]))


def effective_length(scores: Mapping[int, float]) -> int | None:
    """The longest length that, with all shorter ones, scores at least 85.6; None if there is none.

    Args:
        scores: mean score over tasks, 0 to 100, by length.
    """
    effective = None
    for length, score in sorted(scores.items()):
        if score < EFFECTIVE:
            break
        effective = length
    return effective


def _occurs(answer: str, reference: str) -> bool:
    # Control characters count as line breaks, also inside words.
    return reference.lower() in _CONTROL.sub("\n", answer).lower()
