"""Segments: the stretches of a document inside which positions step by 1, its sentences and lines.

Which tokens end a sentence is read off the tokenizer's decoded vocabulary, so it holds for every
tokenizer. (A list of ids, as in LongRecipe's released code, is right for one vocabulary only.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

# These end a sentence only if white space follows: not in 3.14 or os.path.
_ENDS_BEFORE_SPACE = tuple(".!?…؟۔।॥")
_ENDS_ALWAYS = tuple("。！？｡")
_NEWLINES = tuple("\n\r\v\f\x85\u2028\u2029")
_CLOSING = "\"')]}>*_`”’»」』】）"


@dataclass(frozen=True)
class SentenceEnds:
    """What each token of a vocabulary of V says about sentences; each field (V,) bool.

    Attributes:
        always: ends a sentence, whatever follows (a newline, an ideographic full stop).
        before_space: ends one if the next token opens with white space.
        opens_with_space: begins with white space.
        blank_line: white space with a newline, which belongs to the sentence before it.
    """

    always: NDArray[np.bool_]
    before_space: NDArray[np.bool_]
    opens_with_space: NDArray[np.bool_]
    blank_line: NDArray[np.bool_]


_CACHE: WeakKeyDictionary[PreTrainedTokenizerBase, SentenceEnds] = WeakKeyDictionary()


def sentence_ends(tokenizer: PreTrainedTokenizerBase) -> SentenceEnds:
    """Decode the whole vocabulary once per tokenizer and classify its tokens.

    Raises:
        ValueError: if no token ends a sentence.
    """
    ends = _CACHE.get(tokenizer)
    if ends is None or len(ends.always) != len(tokenizer):
        ends = _CACHE[tokenizer] = _classify(_decoded_vocabulary(tokenizer))
    if not (ends.always.any() or ends.before_space.any()):
        raise ValueError(
            f"no token of the tokenizer {tokenizer.name_or_path!r} ends a sentence or a line, so "
            "its documents have no segments"
        )
    return ends


def segment_lengths(token_ids: Sequence[int] | NDArray, ends: SentenceEnds) -> NDArray[np.int32]:
    """Cut a document after each sentence.

    Args:
        token_ids: (S,) ids below V.
        ends: of the tokenizer that made them.

    Returns:
        (N,) positive lengths whose sum is S.
    """
    ids = np.asarray(token_ids)
    if len(ids) == 0:
        return np.zeros(0, np.int32)
    this, following = ids[:-1], ids[1:]
    ends_here = ends.always[this] | (ends.before_space[this] & ends.opens_with_space[following])
    last = np.flatnonzero(ends_here & ~ends.blank_line[following])
    return np.diff(last, prepend=-1, append=len(ids) - 1).astype(np.int32)


def clip_segments(lengths: NDArray, start: int, length: int) -> NDArray[np.int32]:
    """Segment lengths of the piece `[start, start + length)` of a document cut into `lengths`."""
    ends = np.cumsum(lengths)
    inner = ends[(ends > start) & (ends < start + length)] - start
    return np.diff(inner, prepend=0, append=length).astype(np.int32)


def _classify(vocabulary: list[str]) -> SentenceEnds:
    # Indentation after a newline, and quotes or brackets after a full stop, belong to the sentence.
    always = [
        text.rstrip(" \t").endswith(_NEWLINES) or text.rstrip(_CLOSING).endswith(_ENDS_ALWAYS)
        for text in vocabulary
    ]
    before_space = [text.rstrip(_CLOSING).endswith(_ENDS_BEFORE_SPACE) for text in vocabulary]
    opens_with_space = [text[:1].isspace() for text in vocabulary]
    blank_line = [end and text.isspace() for end, text in zip(always, vocabulary, strict=True)]
    return SentenceEnds(*map(np.array, (always, before_space, opens_with_space, blank_line)))


def _decoded_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of every token as it stands inside a text.

    Sentencepiece drops the space that opens a text, so each token is decoded after another one.
    """
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    pairs = [[anchor], *([anchor, token] for token in range(len(tokenizer)))]
    head, *texts = tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
    return [text.removeprefix(head) for text in texts]
