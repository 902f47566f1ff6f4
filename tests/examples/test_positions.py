from collections import Counter

import torch

from examples import positions


def test_pairs_are_counted_by_their_distance():
    sample = torch.tensor([0, 3, 4, 100, positions.TARGET - 1])
    expected = Counter((n - m) for m in sample.tolist() for n in sample.tolist() if n >= m)
    pairs = positions.pairs_by_distance(sample)
    assert pairs.shape == (positions.TARGET,)
    assert {d: count for d, count in enumerate(pairs.tolist()) if count} == expected
