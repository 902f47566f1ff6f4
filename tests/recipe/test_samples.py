import numpy as np
import pytest
import torch
from datasets import Dataset

from lrk.recipe import Samples, Selection
from lrk.recipe.tokens import FEATURES


def documents(lengths: list[int], segment: int = 4) -> Dataset:
    """Documents in which token `i` of document `d` is `1000 d + i`, with equal segments."""
    rows = {
        "input_ids": [[1000 * d + i for i in range(n)] for d, n in enumerate(lengths)],
        "segment_lengths": [[min(segment, n - i) for i in range(0, n, segment)] for n in lengths],
    }
    return Dataset.from_dict(rows, features=FEATURES)


def test_long_documents_are_cut_and_what_is_left_is_packed():
    samples = Samples(documents([25, 7, 3, 11]), length=10)
    assert len(samples) == 4
    pieces = [sample["input_ids"].tolist() for sample in samples]
    assert pieces == [
        list(range(10)),
        list(range(10, 20)),
        list(range(3000, 3010)),
        [*range(20, 25), *range(1000, 1005)],
    ]
    assert (samples.num_tokens, samples.num_unused_tokens, samples.num_packed) == (40, 6, 1)
    packed = samples[3]
    assert [part.tolist() for part in packed["segment_lengths"]] == [[4, 1], [4, 1]]
    assert packed["input_ids"].dtype == torch.int64


def test_segments_are_cut_where_the_document_is():
    sample = Samples(documents([25], segment=4), length=10)[1]
    assert [part.tolist() for part in sample["segment_lengths"]] == [[2, 4, 4]]


@pytest.mark.parametrize("seed", range(30))
def test_every_token_is_used_once_and_samples_are_full(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, size=rng.integers(1, 30)).tolist()
    length = int(rng.integers(2, 25))
    if sum(lengths) < length:
        lengths.append(length)
    samples = Samples(documents(lengths), length)
    seen: list[int] = []
    for index, sample in enumerate(samples):
        ids = sample["input_ids"]
        assert sample["index"] == index
        assert len(ids) == length == sum(int(part.sum()) for part in sample["segment_lengths"])
        assert all((part > 0).all() for part in sample["segment_lengths"])
        for document in ids.split([int(part.sum()) for part in sample["segment_lengths"]]):
            assert (document.diff() == 1).all(), "a document of a sample is one stretch of text"
        seen += ids.tolist()
    assert len(seen) == len(set(seen)) == samples.num_tokens
    assert sum(lengths) - len(seen) == samples.num_unused_tokens < length
    assert all(token % 1000 < lengths[token // 1000] for token in seen)


def test_without_packing_each_sample_lies_in_one_document():
    samples = Samples(documents([25, 7, 11]), length=10, pack=False)
    assert len(samples) == 3
    assert samples.num_packed == 0
    assert samples.num_unused_tokens == 13
    assert all(len(sample["segment_lengths"]) == 1 for sample in samples)


@pytest.mark.parametrize(
    ("lengths", "pack", "message"),
    [
        ([3, 4], True, "2 documents hold 7 tokens together, but one sample .* needs 10"),
        ([9, 4], False, "longest of 2 documents has 9 tokens, but .* needs train_length 10"),
        ([], True, "0 documents hold 0 tokens"),
    ],
)
def test_documents_that_are_too_short(lengths, pack, message):
    with pytest.raises(ValueError, match=message):
        Samples(documents(lengths), length=10, pack=pack)


def test_a_sample_of_one_token_is_refused():
    with pytest.raises(ValueError, match="length is 1; a sample needs at least 2 tokens"):
        Samples(documents([30]), length=1)


def test_an_index_beyond_the_end():
    with pytest.raises(IndexError):
        Samples(documents([10]), length=10)[1]


@pytest.mark.parametrize("rule", ["random", "first", "positions"])
@pytest.mark.parametrize("seed", range(10))
def test_a_selection_reads_stretches_and_drops_nothing_else(rule, seed):
    """Stretches of 30 tokens give samples of 10, also what is left of a document if it is longer
    than 10; what is shorter is packed."""
    rng = np.random.default_rng(seed)
    lengths = [*rng.integers(1, 100, size=12).tolist(), 30, 40, 39, 10]
    samples = Samples(documents(lengths), 10, selection=Selection(rule, 30, seed=seed))
    stretches = [min(30, n - start) for n in lengths for start in range(0, n, 30)]
    alone = [size for size in stretches if size >= 10]
    short = sum(size for size in stretches if size < 10)
    assert len(samples) == len(alone) + short // 10
    assert samples.num_tokens == 10 * len(samples)
    assert samples.num_unselected_tokens == sum(alone) - 10 * len(alone)
    assert samples.num_unused_tokens == short % 10
    assert sum(lengths) == (
        samples.num_tokens + samples.num_unselected_tokens + samples.num_unused_tokens
    )
    seen: list[int] = []
    for number, sample in enumerate(samples):
        ids = sample["input_ids"]
        whole = rule == "positions" and number < len(alone)
        assert len(ids) == (alone[number] if whole else 10)
        assert sum(int(part.sum()) for part in sample["segment_lengths"]) == len(ids)
        if number < len(alone):
            assert (ids.diff() > 0).all()
            assert ids[-1] - ids[0] < alone[number]
        seen += ids.tolist()
        chosen = samples.choice(number)
        assert (chosen is None) == (
            rule == "positions" or number >= len(alone) or alone[number] == 10
        )
        if chosen is not None:
            size, choice = chosen
            assert size == alone[number]
            assert (choice.tokens - choice.tokens[0]).tolist() == (ids - ids[0]).tolist()
    assert len(seen) == len(set(seen))


def test_a_span_below_the_length_is_refused():
    with pytest.raises(ValueError, match="the selection's span is 9, below length 10"):
        Samples(documents([30]), 10, selection=Selection("random", 9))
