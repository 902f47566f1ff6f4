import numpy as np
import pytest
from datasets import Dataset

from lrk.recipe.upsample import copies, length_upsampled


@pytest.mark.parametrize("factor", [1.0, 1.5, 5.0, 40.0])
@pytest.mark.parametrize("seed", range(10))
def test_sources_keep_their_tokens_and_long_documents_weigh_more(seed, factor):
    rng = np.random.default_rng(seed)
    lengths = (rng.lognormal(6, 1.5, size=500).astype(np.int64)) + 1
    sources = rng.integers(0, 3, size=500)
    threshold = 1000
    numbers = copies(lengths, sources, threshold, factor)
    for source in range(3):
        here = sources == source
        is_long = lengths > threshold
        before = [int(lengths[here & part].sum()) for part in (is_long, ~is_long)]
        after = [int((lengths * numbers)[here & part].sum()) for part in (is_long, ~is_long)]
        weight = sum(before) / (factor * before[0] + before[1])
        bounds = [lengths[here].max(), threshold]
        assert abs(after[0] - factor * weight * before[0]) <= bounds[0]
        assert abs(after[1] - weight * before[1]) <= bounds[1]
        assert abs(sum(after) - sum(before)) <= sum(bounds)


def test_by_hand():
    """Long: 100 of 200 tokens. f = 3, w = 200 / (300 + 100): 1.5 copies, and every other one."""
    lengths = np.array([50, 50, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    numbers = copies(lengths, np.zeros(12, int), 20, 3.0)
    assert sorted(numbers[:2].tolist()) == [1, 2]
    assert numbers[2:].tolist() == [1, 0] * 5
    assert (copies(lengths, np.zeros(12, int), 20, 1.0) == 1).all()


@pytest.mark.parametrize("threshold", [5, 1000])
def test_a_source_of_one_class_is_left_as_it_is(threshold):
    lengths = np.array([10, 20, 30])
    assert copies(lengths, np.zeros(3, int), threshold, 5.0).tolist() == [1, 1, 1]


def test_documents_are_repeated_in_their_order():
    rows = {"input_ids": [[1] * 50, [2] * 50, [3] * 10, [4] * 90], "source": [0, 0, 0, 1]}
    upsampled = length_upsampled(Dataset.from_dict(rows), 20, 3.0)
    assert [ids[0] for ids in upsampled["input_ids"]] == [1, 2, 4]


@pytest.mark.parametrize(
    ("longer_than", "factor", "message"),
    [
        (0, 2.0, "upsample_longer_than is 0; it must be positive"),
        (10, 0.5, "upsample_factor is 0.5; it must be at least 1 and finite"),
        (10, float("inf"), "upsample_factor is inf; it must be at least 1 and finite"),
    ],
)
def test_arguments_out_of_range(longer_than, factor, message):
    with pytest.raises(ValueError, match=message):
        copies(np.array([1]), np.array([0]), longer_than, factor)
