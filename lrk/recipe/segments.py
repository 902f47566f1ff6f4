"""Segments: the stretches of a document inside which positions step by 1, its sentences and lines.

Text without sentence ends (Chinese without stops, minified code, base64) would be one segment, and
a model trained on it would meet no distance beyond it. So what is longer than LONGEST_SEGMENT is
cut further: before white space if there is any, else after so many tokens. No sampler but
LongRecipe's looks at segments, and PoSE's, RandPos's and CREAM's cut anywhere.

Which tokens end a sentence is read off the tokenizer's decoded vocabulary, so it holds for every
tokenizer. (A list of ids, as in LongRecipe's released code, is right for one vocabulary only.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

# Tokens of a long sentence. A text of LongRecipe's shortest samples still has dozens of segments.
LONGEST_SEGMENT = 128

# These end a sentence only if white space follows: not in 3.14 or os.path.
_ENDS_BEFORE_SPACE = tuple(".!?…؟۔।॥")
_ENDS_ALWAYS = tuple("。！？｡")
_NEWLINES = tuple("\n\r\v\f\x85\u2028\u2029")
_PART_OF_CHARACTER = "\ufffd"  # what a token decodes to that holds only some of its bytes
_CLOSING = "\"')]}>*_`”’»」』】）"

_ALWAYS, _BEFORE_SPACE, _OPENS_WITH_SPACE, _BLANK_LINE, _LAST_OF_SPREAD = (
    np.uint8(1 << bit) for bit in range(5)
)


@dataclass(frozen=True)
class SentenceEnds:
    """What the tokens of a vocabulary of V say about sentences; the first four (V,) bool.

    Attributes:
        always: ends a sentence, whatever follows (a newline, an ideographic full stop).
        before_space: ends one if the next token opens with white space.
        opens_with_space: begins with white space.
        blank_line: white space with a newline, which belongs to the sentence before it.
        spread: characters that end a sentence and that the tokenizer spreads over several tokens:
            their ids, and whether they end it whatever follows. (SmolLM2 has no token for `！`.)
    """

    always: NDArray[np.bool_]
    before_space: NDArray[np.bool_]
    opens_with_space: NDArray[np.bool_]
    blank_line: NDArray[np.bool_]
    spread: tuple[tuple[tuple[int, ...], bool], ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Without `bits`, whose use would change the hash under which `datasets` keeps results."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @cached_property
    def bits(self) -> NDArray[np.uint8]:
        """(V,) all of it in one byte, so that a document is looked up once."""
        last = np.isin(np.arange(len(self.always)), [ids[-1] for ids, _ in self.spread])
        return (
            _ALWAYS * self.always
            | _BEFORE_SPACE * self.before_space
            | _OPENS_WITH_SPACE * self.opens_with_space
            | _BLANK_LINE * self.blank_line
            | _LAST_OF_SPREAD * last
        )


_CACHE: WeakKeyDictionary[PreTrainedTokenizerBase, SentenceEnds] = WeakKeyDictionary()


def sentence_ends(tokenizer: PreTrainedTokenizerBase) -> SentenceEnds:
    """Decode the whole vocabulary once per tokenizer and classify its tokens.

    Raises:
        ValueError: if no token ends a sentence.
    """
    ends = _CACHE.get(tokenizer)
    if ends is None or len(ends.always) != len(tokenizer):
        vocabulary = decoded_vocabulary(tokenizer)
        has_parts = any(_PART_OF_CHARACTER in text for text in vocabulary)
        spread = tuple(_spread_characters(tokenizer)) if has_parts else ()
        ends = _CACHE[tokenizer] = _classify(vocabulary, spread)
    if not (ends.always.any() or ends.before_space.any() or ends.spread):
        raise ValueError(
            f"no token of the tokenizer {tokenizer.name_or_path!r} ends a sentence or a line, so "
            "its documents have no segments"
        )
    return ends


def segment_lengths(token_ids: Sequence[int] | NDArray, ends: SentenceEnds) -> NDArray[np.int32]:
    """Cut a document after each sentence, and a sentence of more than LONGEST_SEGMENT tokens.

    Such a sentence is cut before the last of its tokens up to there that opens with white space, if
    that leaves at least half as many, else after LONGEST_SEGMENT tokens; then again.

    Args:
        token_ids: (S,) ids below V.
        ends: of the tokenizer that made them.

    Returns:
        (N,) positive lengths whose sum is S.
    """
    ids = np.asarray(token_ids)
    if len(ids) == 0:
        return np.zeros(0, np.int32)
    bits = ends.bits.take(ids)
    this, following = bits[:-1], bits[1:]
    opens = (following & _OPENS_WITH_SPACE) != 0
    ends_here = (this & _ALWAYS != 0) | ((this & _BEFORE_SPACE != 0) & opens)
    for place, always in _spread_ends(ids, np.flatnonzero(this & _LAST_OF_SPREAD), ends):
        ends_here[place] |= always | opens[place]
    last = np.flatnonzero(ends_here & (following & _BLANK_LINE == 0))
    lengths = np.diff(last, prepend=-1, append=len(ids) - 1).astype(np.int32)
    long = np.flatnonzero(lengths > LONGEST_SEGMENT)
    if len(long) == 0:
        return lengths
    stops = np.cumsum(lengths)
    short, *groups = np.split(lengths, long)  # each group is a long sentence and short ones
    cut = [
        np.append(_parts(opens[stop - length : stop - 1]), group[1:])
        for stop, length, group in zip(stops[long], lengths[long], groups, strict=True)
    ]
    return np.concatenate([short, *cut]).astype(np.int32)


def clip_segments(lengths: NDArray, start: int, length: int) -> NDArray[np.int32]:
    """Segment lengths of the piece `[start, start + length)` of a document cut into `lengths`."""
    ends = np.cumsum(lengths)
    inner = ends[(ends > start) & (ends < start + length)] - start
    return np.diff(inner, prepend=0, append=length).astype(np.int32)


def _parts(opens: NDArray[np.bool_]) -> list[int]:
    """Lengths (P,) of the parts of a long sentence of N tokens.

    Args:
        opens: (N - 1,) which of its tokens, the first one aside, open with white space.
    """
    spaces = np.flatnonzero(opens) + 1
    start, end, parts = 0, len(opens) + 1, []
    while end - start > LONGEST_SEGMENT:
        cut = start + LONGEST_SEGMENT
        before = int(np.searchsorted(spaces, cut, side="right")) - 1
        if before >= 0 and spaces[before] >= cut - LONGEST_SEGMENT // 2:
            cut = int(spaces[before])
        parts.append(cut - start)
        start = cut
    return [*parts, end - start]


def _spread_ends(
    ids: NDArray, candidates: NDArray[np.int64], ends: SentenceEnds
) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """Where the spread characters end, of the places with the last token of one."""
    if len(candidates) == 0:
        return
    for pattern, always in ends.spread:
        places = candidates[candidates >= len(pattern) - 1]
        for back, token in enumerate(reversed(pattern)):
            places = places[ids[places - back] == token]
        yield places, always


def _spread_characters(
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[tuple[int, ...], bool]]:
    before = tokenizer.encode("a", add_special_tokens=False)
    for character in (*_ENDS_ALWAYS, *_ENDS_BEFORE_SPACE, *_NEWLINES):
        ids = tokenizer.encode("a" + character, add_special_tokens=False)
        pattern = tuple(ids[len(before) :])
        if len(pattern) > 1 and ids[: len(before)] == before:
            yield pattern, character not in _ENDS_BEFORE_SPACE


def _classify(
    vocabulary: list[str], spread: tuple[tuple[tuple[int, ...], bool], ...]
) -> SentenceEnds:
    # Indentation after a newline, and quotes or brackets after a full stop, belong to the sentence.
    always = [
        text.rstrip(" \t").endswith(_NEWLINES) or text.rstrip(_CLOSING).endswith(_ENDS_ALWAYS)
        for text in vocabulary
    ]
    before_space = [text.rstrip(_CLOSING).endswith(_ENDS_BEFORE_SPACE) for text in vocabulary]
    opens_with_space = [text[:1].isspace() for text in vocabulary]
    blank_line = [end and text.isspace() for end, text in zip(always, vocabulary, strict=True)]
    return SentenceEnds(
        np.array(always),
        np.array(before_space),
        np.array(opens_with_space),
        np.array(blank_line),
        spread,
    )


def decoded_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of every token as it stands inside a text.

    Sentencepiece drops the space that opens a text, so each token is decoded after another one.
    """
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    pairs = [[anchor], *([anchor, token] for token in range(len(tokenizer)))]
    head, *texts = tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
    return [text.removeprefix(head) for text in texts]
