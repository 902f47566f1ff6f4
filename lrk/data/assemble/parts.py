"""Parts: stretches of documents, and how they are laid together to one document.

Between two parts stands a blank line, as in LiteLong's released code. End-of-text stands at the end
of the whole alone: a model has learnt that what follows it has nothing to do with what came before,
and here it is to look back. For the same reason the whole is one document to `lrk-train`, so that
every token attends to all before it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.recipe.token_ids import special_tokens_around
from lrk.recipe.tokens import prompt_ids

_BETWEEN = "\n\n"


class Part(NamedTuple):
    """Tokens `start .. stop - 1` of a document of the data."""

    document: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def cut(self, tokens: int) -> "Part":
        """Its first tokens."""
        return self._replace(stop=self.start + tokens)


class Plan(NamedTuple):
    """What one sample is made of.

    Attributes:
        parts: in the order of the sample.
        scored: for each part, whether long context is to help it: see `Verification`.
    """

    parts: list[Part]
    scored: list[bool]


@dataclass(frozen=True)
class Layout:
    """The tokens of a sample that are of no part.

    Attributes:
        head: special tokens that the tokenizer puts before a text.
        between: a blank line.
        tail: special tokens after a text, end-of-text among them.
    """

    head: tuple[int, ...]
    between: tuple[int, ...]
    tail: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Layout":
        """As `lrk-data prepare` opens and closes documents with this tokenizer."""
        before, after = special_tokens_around(tokenizer, {})
        eos = tokenizer.eos_token_id
        closing = [] if eos is None or after[-1:] == [eos] else [eos]
        return cls(tuple(before), prompt_ids(_BETWEEN, tokenizer), (*after, *closing))

    def room(self, length: int) -> int:
        """Tokens of a sample of `length` that are left to parts and what is between them."""
        return length - len(self.head) - len(self.tail)

    def text(self, document: int, ids: NDArray[np.int32]) -> Part:
        """A document (S,) without its special tokens; a document may lack them, as cut ones do."""
        start, stop = 0, len(ids)
        if tuple(ids[: len(self.head)]) == self.head:
            start = len(self.head)
        if self.tail and tuple(ids[-len(self.tail) :]) == self.tail:
            stop -= len(self.tail)
        return Part(document, start, max(start, stop))

    def join(self, texts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
        """(S,) the tokens of a sample of parts (P of some length each)."""
        pieces: list[Sequence[int] | NDArray[np.int32]] = [self.head]
        for number, text in enumerate(texts):
            pieces += [text] if number == 0 else [self.between, text]
        return np.concatenate([*pieces, self.tail]).astype(np.int32)

    def places(self, parts: Sequence[Part]) -> list[slice]:
        """Where in the sample each part is."""
        ends = np.cumsum([part.tokens + len(self.between) for part in parts]) + len(self.head)
        stops = (ends - len(self.between)).tolist()
        return [slice(stop - part.tokens, stop) for stop, part in zip(stops, parts, strict=True)]


def fill(
    units: Iterable[int], parts: Sequence[Part], room: int, between: int
) -> list[tuple[int, Part]] | None:
    """The first of `units` whose parts fill `room` tokens exactly, the last of them cut.

    Args:
        units: numbers of parts; no more are drawn than are needed.
        room: more than `between`.
        between: tokens that each part takes beside its own.

    Returns:
        Units and their parts: their tokens and as many times `between` add up to `room`. None if
        they do not fill it. A part that would leave a rest too small for another one is halved, or
        left out if it cannot be.
    """
    chosen = []
    for unit in units:
        size = min(parts[unit].tokens, room - between)
        rest = room - between - size
        if 0 < rest <= between:
            rest += size - size // 2
            size //= 2
        if size == 0 or 0 < rest <= between:
            continue
        chosen.append((unit, parts[unit].cut(size)))
        room = rest
        if room == 0:
            return chosen
    return None
