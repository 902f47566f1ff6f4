"""A sample of 24,576 tokens out of 81,920 pre-tokenised ones, with positions, in CPU seconds.

    python -m pytest bench/bench_data.py

Beside lrk runs LongRecipe's released preprocessing, written anew: lists, one token at a time. It
looks at the first 24,576 tokens alone, decodes each sentence to see whether it has a digit, else
throws a coin, and flattens a list of the target's length to find positions for the unfiltered text.
Rates are of the tokens that each of them looks at.
"""

import random
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from bench.measure import run
from lrk import positions
from lrk.recipe import Selection, segment_lengths, sentence_ends
from lrk.recipe.selection import digit_types
from studies.tiny import prose, train_tokenizer

TARGET, BUDGET = 81_920, 24_576
KEPT_BY_COIN = 0.4


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([prose(200, 0)], 320)


@cache
def document() -> NDArray[np.int32]:
    """Pieces of words; every 20th token ends a line, every 60th is a digit."""
    generator = np.random.default_rng(0)
    digit, line_end = (tokenizer().convert_tokens_to_ids(token) for token in ("7", "Ċ"))
    ids = generator.integers(260, len(tokenizer()), TARGET).astype(np.int32)
    ids[generator.random(TARGET) < 1 / 60] = digit
    ids[generator.random(TARGET) < 1 / 20] = line_end
    return ids


def lrk() -> Callable[[], object]:
    ids, ends = document(), sentence_ends(tokenizer())
    selection = Selection("digits", TARGET, digit_types(tokenizer()))
    generator = torch.Generator().manual_seed(0)

    def prepare() -> object:
        choice = selection.choose(ids, segment_lengths(ids, ends), BUDGET, (0, 0))
        lengths = torch.from_numpy(choice.segment_lengths)
        return ids[choice.tokens], positions.longrecipe(lengths, TARGET, generator)

    return prepare


def loops() -> Callable[[], object]:
    tokens = document().tolist()
    split_ids = [tokenizer().convert_tokens_to_ids("Ċ")]
    generator = random.Random(0)

    def flat(items: list) -> list:
        flattened = []
        for item in items:
            if isinstance(item, list):
                flattened.extend(flat(item))
            else:
                flattened.append(item)
        return flattened

    def sentences_and_places() -> tuple[list[list[int]], list[list[int]]]:
        sentences: list[list[int]] = [[]]
        places: list[list[int]] = [[]]
        for place, token in enumerate(flat(tokens[:BUDGET])):
            sentences[-1].append(token)
            places[-1].append(place)
            if token in split_ids:
                sentences.append([])
                places.append([])
        return sentences, places

    def prepare() -> object:
        sentences, places = sentences_and_places()
        texts = tokenizer().batch_decode(sentences)
        kept = [
            sentence
            for sentence, text in zip(sentences, texts, strict=True)
            if any(letter.isdigit() for letter in text) or generator.random() < KEPT_BY_COIN
        ]
        slots: list = [0] * (TARGET - BUDGET + len(places))
        chosen = sorted(generator.sample(range(len(slots)), len(places)))
        for slot, sentence in zip(chosen, places, strict=True):
            slots[slot] = sentence
        spread = flat(slots)
        return flat(kept), [place for place in range(len(spread)) if spread[place] != 0]

    return prepare


@pytest.mark.benchmark(timer=time.process_time, warmup=False, min_rounds=20, max_time=1)
@pytest.mark.parametrize(("provider", "read"), [(lrk, TARGET), (loops, BUDGET)])
def test_data(benchmark, provider, read):
    benchmark.group = f"a sample of {BUDGET} tokens for a target of {TARGET}"
    torch.set_num_threads(1)
    run(benchmark, provider(), {"tokens_per_s": read}, provider=provider.__name__)
