import numpy as np

from lrk.analysis import rows
from lrk.analysis.counts import count_top, gains, top_of_each_place


def test_the_top_is_taken_place_by_place_and_equals_in_order():
    delta = np.array([[3.0, -5.0, 1.0], [1.0, -9.0, 1.0], [2.0, -7.0, 1.0], [0.0, -8.0, 1.0]])
    assert top_of_each_place(delta, 0.5).T.tolist() == [
        [True, False, True, False],
        [True, False, True, False],
        [True, True, False, False],
    ]
    # 0.3 of 10 is 3, although 0.3 * 10 is below 3 in floating point for some shares.
    for share, chosen in ((0.3, 3), (0.29, 2), (0.7, 7), (0.1, 1)):
        top = top_of_each_place(np.random.default_rng(0).random((10, 4)), share)
        assert top.sum(0).tolist() == [chosen] * 4


def test_counts_do_not_depend_on_the_blocks(monkeypatch):
    random = np.random.default_rng(0)
    ids, tags = random.integers(0, 11, (20, 33)), random.integers(0, 4, (20, 33))
    delta = random.normal(size=(20, 33)).astype(np.float32)

    def of(block):
        monkeypatch.setattr(rows, "_BLOCK", block)
        types, parts = count_top(
            ids, lambda places: top_of_each_place(delta[:, places], 0.2), 1, 11, tags, 4
        )
        return types, parts, gains(ids, lambda places: delta[:, places], 1, 11)

    types, parts, gain = of(40)
    top = np.zeros((20, 33), bool)
    for place in range(1, 33):
        top[np.argsort(-delta[:, place], kind="stable")[:4], place] = True
    for token in range(11):
        assert types.count[token] == (ids[:, 1:] == token).sum()
        assert types.top_count[token] == ((ids == token) & top).sum()
        assert np.isclose(gain[token], delta[:, 1:][ids[:, 1:] == token].sum(), atol=1e-4)
    for tag in range(4):
        assert parts.top_count[tag] == ((tags == tag) & top).sum()
    whole_types, whole_parts, whole_gain = of(10**6)
    assert np.array_equal(types.top_count, whole_types.top_count)
    assert np.array_equal(parts.count, whole_parts.count)
    assert np.allclose(gain, whole_gain)
    assert np.isclose(types.share.sum(), 1)
    assert np.isclose(types.top_share.sum(), 1)
