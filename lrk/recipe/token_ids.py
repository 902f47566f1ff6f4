"""Token ids of texts of any length, in memory of a few times the text.

A tokenizer holds some 135 bytes for each character of what it is given. So a long text is given to
it in pieces that overlap. Near the ends of a piece the ids may be others than in the whole text: a
word is torn, a space put before it. But both pieces soon agree, and they are joined in the middle
of the longest run of tokens that are the same in both. Byte-level BPE and sentencepiece split
words by what follows them alone, so from a token that is right on, the next ones are right. Two
pieces that agree nowhere (a run of one character, which is one word) are tokenized as one.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

PIECE = 2**15  # characters; a larger piece leaves the processor's cache and takes longer
OVERLAP = 2**10
_AGREEING = 16  # tokens
_TOGETHER = 16  # pieces that the tokenizer may work on at a time


class Encoded(NamedTuple):
    """Ids (S,) int32 and, where they were asked for, the characters [start, end) (S, 2) of each."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64] | None


class _Piece(NamedTuple):
    """What was made of a piece, and (start, end, id) of its first and last tokens."""

    encoded: Encoded
    head: list[tuple[int, int, int]]
    tail: list[tuple[int, int, int]]


def encode(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    split_special_tokens: bool,
    add_special_tokens: bool = True,
    offsets: bool = False,
) -> list[Encoded]:
    """Token ids of texts, those of each as if it were tokenized as a whole.

    A slow tokenizer does not say where its tokens are, and takes texts whole.

    Args:
        split_special_tokens: what reads like a special token is text.
        add_special_tokens: those that the tokenizer itself puts around a text.
        offsets: also return which characters the tokens stand for.
    """
    options = {"split_special_tokens": split_special_tokens}
    long = [tokenizer.is_fast and len(text) > PIECE + OVERLAP for text in texts]
    short = [text for text, is_long in zip(texts, long, strict=True) if not is_long]
    wholes = iter(
        _whole(short, tokenizer, offsets, add_special_tokens=add_special_tokens, **options)
    )
    is_added = add_special_tokens and any(long)
    around = special_tokens_around(tokenizer, options) if is_added else ([], [])
    return [
        _with_added(_in_pieces(text, tokenizer, offsets, options), around, len(text))
        if is_long
        else next(wholes)
        for text, is_long in zip(texts, long, strict=True)
    ]


def _whole(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, offsets: bool, **options: Any
) -> Iterator[Encoded]:
    if not texts:
        return
    made = tokenizer(
        texts,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
        verbose=False,
        **options,
    )
    for number, ids in enumerate(made["input_ids"]):
        spans = np.array(made["offset_mapping"][number], np.int64) if offsets else None
        yield Encoded(np.array(ids, np.int32), None if spans is None else spans.reshape(-1, 2))


def special_tokens_around(
    tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False, **options)["input_ids"]
    ids = tokenizer("a", **options)["input_ids"]
    first = next(i for i in range(len(ids)) if ids[i : i + len(bare)] == bare)
    return ids[:first], ids[first + len(bare) :]


def _with_added(encoded: Encoded, around: tuple[list, list], length: int) -> Encoded:
    before, after = around
    if not before and not after:
        return encoded
    ids = np.concatenate([before, encoded.ids, after]).astype(np.int32)
    if encoded.offsets is None:
        return Encoded(ids, None)
    spans = [np.zeros((len(before), 2)), encoded.offsets, np.zeros((len(after), 2))]
    return Encoded(ids, np.concatenate(spans).astype(np.int64))


def _in_pieces(
    text: str, tokenizer: PreTrainedTokenizerBase, offsets: bool, options: dict[str, Any]
) -> Encoded:
    last = -(-(len(text) - OVERLAP) // PIECE)
    bounds = [
        (number * PIECE, len(text) if number == last - 1 else (number + 1) * PIECE + OVERLAP)
        for number in range(last)
    ]

    def made(bounds: Sequence[tuple[int, int]]) -> list[_Piece]:
        texts = [text[start:end] for start, end in bounds]
        encodings = tokenizer(texts, add_special_tokens=False, verbose=False, **options).encodings
        assert encodings is not None
        return [
            _piece(encoding, start, end, offsets)
            for encoding, (start, end) in zip(encodings, bounds, strict=True)
        ]

    def joined(pieces: Sequence[_Piece], bounds: Sequence[tuple[int, int]]) -> _Piece:
        if len(pieces) == 1:
            return pieces[0]
        half = len(pieces) // 2
        left, right = joined(pieces[:half], bounds[:half]), joined(pieces[half:], bounds[half:])
        place = _agreement(left.tail, right.head)
        if place is None:
            return made([(bounds[0][0], bounds[-1][1])])[0]
        return _join(left, right, *place)

    pieces = [
        piece
        for first in range(0, last, _TOGETHER)
        for piece in made(bounds[first : first + _TOGETHER])
    ]
    return joined(pieces, bounds).encoded


def _piece(encoding: Any, start: int, end: int, offsets: bool) -> _Piece:
    ids = np.array(encoding.ids, np.int32)
    spans = np.array(encoding.offsets, np.int64).reshape(-1, 2) + start if offsets else None

    def token(number: int) -> tuple[int, int, int]:
        first, last = encoding.token_to_chars(number) or (0, 0)
        return start + first, start + last, int(ids[number])

    head: list[tuple[int, int, int]] = []
    for number in range(len(ids)):
        head.append(token(number))
        if head[-1][1] >= start + OVERLAP:
            break
    tail: list[tuple[int, int, int]] = []
    for number in reversed(range(len(ids))):
        tail.append(token(number))
        if tail[-1][0] < end - OVERLAP:
            break
    return _Piece(Encoded(ids, spans), head, tail[::-1])


def _agreement(
    tail: list[tuple[int, int, int]], head: list[tuple[int, int, int]]
) -> tuple[int, int] | None:
    """The middle of the longest run of tokens that both have, as an index of each."""
    place_in_tail = {token: place for place, token in enumerate(tail)}
    best = (0, 0, 0)
    run = 0
    for place, token in enumerate(head):
        there = place_in_tail.get(token)
        follows = (
            place > 0 and there is not None and there > 0 and tail[there - 1] == head[place - 1]
        )
        run = 0 if there is None else run + 1 if follows else 1
        if there is not None and run > best[0]:
            best = (run, there, place)
    run, there, place = best
    return (there - run // 2, place - run // 2) if run >= _AGREEING else None


def _join(left: _Piece, right: _Piece, in_tail: int, in_head: int) -> _Piece:
    """The tokens of `left` before one of its tail, and those of `right` from one of its head on."""
    until = len(left.encoded.ids) - len(left.tail) + in_tail
    (ids, spans), (ids_on, spans_on) = left.encoded, right.encoded
    encoded = Encoded(
        np.concatenate([ids[:until], ids_on[in_head:]]),
        None
        if spans is None or spans_on is None
        else np.concatenate([spans[:until], spans_on[in_head:]]),
    )
    return _Piece(encoded, left.head, right.tail)
