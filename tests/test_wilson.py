import numpy as np
import pytest

from lrk.wilson import wilson_interval


def test_textbook_values():
    # 8 of 10: 0.490 to 0.943; 0 and 10 of 10 are mirror images (Agresti and Coull 1998).
    low, high = wilson_interval(np.array([8, 0, 10]), np.array([10, 10, 10]))
    assert low == pytest.approx([0.4902, 0.0, 0.7225], abs=1e-4)
    assert high == pytest.approx([0.9433, 0.2775, 1.0], abs=1e-4)


def test_the_share_lies_inside():
    hits, trials = np.arange(101), np.full(101, 100)
    low, high = wilson_interval(hits, trials)
    assert (low <= hits / 100).all()
    assert (hits / 100 <= high).all()
