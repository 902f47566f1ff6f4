from collections import Counter

import pytest
import torch
from datasets import Dataset

from lrk.recipe import Placement, Samples
from lrk.recipe.collate import Collator
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.tokens import FEATURES, FEATURES_WITH_LABELS


def source(number: int, samples: int, length: int = 4, labels: bool = False) -> Samples:
    """Samples whose tokens are `1000 number + sample`."""
    rows = {
        "input_ids": [[1000 * number + i] * length for i in range(samples)],
        "segment_lengths": [[length]] * samples,
    }
    if labels:
        rows["is_label"] = [[False] * (length - 1) + [True]] * samples
    features = FEATURES_WITH_LABELS if labels else FEATURES
    return Samples(Dataset.from_dict(rows, features=features), length)


def first_tokens(mixed: MixedSamples) -> list[int]:
    return [int(mixed[index]["input_ids"][0]) for index in range(len(mixed))]


@pytest.mark.parametrize(
    ("sizes", "shares", "counts"),
    [
        ([10, 10], [0.5, 0.5], [10, 10]),
        ([10, 3], [0.5, 0.5], [10, 10]),
        ([3, 70], [0.3, 0.7], [30, 70]),
        ([7], [1.0], [7]),
        ([5, 1, 1], [1 / 3, 1 / 3, 1 / 3], [5, 5, 5]),
        ([2, 1], [0.9, 0.1], [9, 1]),
        ([100, 1], [0.999, 0.001], [999, 1]),
    ],
)
def test_an_epoch_shows_every_sample_and_keeps_the_shares(sizes, shares, counts):
    mixed = MixedSamples([source(i, size) for i, size in enumerate(sizes)], shares)
    assert mixed.counts == counts
    assert (len(mixed), mixed.num_tokens) == (sum(counts), 4 * sum(counts))
    seen = Counter(first_tokens(mixed))
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        times = [seen[1000 * number + sample] for sample in range(size)]
        assert sum(times) == count
        assert min(times) >= 1
        assert max(times) - min(times) <= 1


def test_any_stretch_has_the_shares():
    mixed = MixedSamples([source(0, 70), source(1, 5), source(2, 20)], [0.7, 0.1, 0.2])
    order = [token // 1000 for token in first_tokens(mixed)]
    for start in range(len(order) - 20):
        found = Counter(order[start : start + 20])
        assert [abs(found[number] - part) <= 1 for number, part in enumerate((14, 2, 4))] == [
            True
        ] * 3


def test_a_sample_that_comes_again_has_other_positions():
    mixed = MixedSamples([source(0, 6, 32), source(1, 1, 32)], [0.5, 0.5])
    again = [i for i in range(len(mixed)) if int(mixed[i]["input_ids"][0]) == 1000]
    assert len(again) == 6
    assert [mixed[i]["index"] for i in again] == again
    placement = Placement(10_000, "randpos")
    first, second = (placement.position_ids(mixed[i]) for i in again[:2])
    assert not torch.equal(first, second)


def test_texts_and_conversations_make_one_batch():
    mixed = MixedSamples([source(0, 2), source(1, 2, labels=True)], [0.5, 0.5])
    batch = Collator(Placement(4, "contiguous"))([mixed[0], mixed[1]])
    assert batch["labels"].tolist() == [[-100, 0, 0, 0], [-100, -100, -100, 1000]]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5], r"data_shares has 1 entries \(0.5\) for 2 sources in data"),
        ([0.5, 0.6], "data_shares is 0.5, 0.6; they must be positive and add up to 1"),
        ([1.5, -0.5], "data_shares is 1.5, -0.5; they must be positive"),
        ([float("nan"), 1.0], "data_shares is nan, 1.0; they must be positive"),
    ],
)
def test_shares_that_do_not_fit(shares, message):
    with pytest.raises(ValueError, match=message):
        MixedSamples([source(0, 2), source(1, 2)], shares)


def test_an_index_beyond_the_end():
    mixed = MixedSamples([source(0, 2)], [1.0])
    with pytest.raises(IndexError, match="sample 2 of 2"):
        mixed[2]
