"""Names that were defined far before: what is asked of a text, and over which distance.

A name of Python that stands in a document before can be written the same again by a model that
finds it there, however far back. Its first tokens say which name is meant, as a quote's cue does
in `studies.proof.task`; the tokens behind them are asked for.
"""

import builtins
import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import Tokenizer

from studies.real_text.corpus import Document

CUE = 2
"""Tokens of a name that are given."""
SHORTEST = 5
"""Characters of a name: shorter ones are guessed."""
_KNOWN = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins)}


class Asked(NamedTuple):
    """Tokens of a name that are asked for.

    Attributes:
        places: their indices in the document.
        before: indices of the same tokens where the name stood first, for the only time before.
    """

    places: range
    before: range

    @property
    def distance(self) -> int:
        return self.places.start - self.before.start


def asked_names(document: Document, tokenizer: Tokenizer) -> list[Asked]:
    """The names of a document that stood exactly once before, anywhere in it.

    A name counts as seen where its letters stand, in comments, strings and longer names too. It has
    more tokens than CUE, and in both places the same ones but for a space in front, which is a part
    of the first.
    """
    encoding = tokenizer.encode(document.text)
    if encoding.ids != document.tokens.tolist():
        raise ValueError(f"{document.name} is not cut between two tokens")
    spans = encoding.offsets
    first_of: dict[int, int] = {}
    for number, (start, end) in enumerate(spans):
        for character in range(start, end):
            first_of.setdefault(character, number)
    found = []
    for name, start in _names(document.text):
        if _is_guessed(name) or document.text.count(name, 0, start) != 1:
            continue
        before = document.text.index(name)
        if not _stands_alone(document.text, before, len(name)):
            continue
        first, first_before = first_of[start], first_of[before]
        last = first_of[start + len(name) - 1]
        count = last + 1 - first
        same = encoding.ids[first + 1 : last + 1] == encoding.ids[first_before + 1 :][: count - 1]
        if same and count > CUE and spans[last][1] == start + len(name):
            places = range(first + CUE, last + 1)
            shift = first - first_before
            found.append(Asked(places, range(places.start - shift, places.stop - shift)))
    return found


def _is_guessed(name: str) -> bool:
    """Whether the language knows it, or it is short."""
    return len(name) < SHORTEST or name in _KNOWN or (name.startswith("__") and name.endswith("__"))


def _names(text: str) -> Iterator[tuple[str, int]]:
    """Python's names and where they start, in characters, up to where the text is cut off."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                line, column = token.start
                yield token.string, starts[line - 1] + column
    except (tokenize.TokenError, IndentationError):
        return  # A string or bracket has no end: the document is cut off in it.


def _stands_alone(text: str, start: int, length: int) -> bool:
    around = text[max(0, start - 1) : start] + text[start + length : start + length + 1]
    return not re.search(r"\w", around)
