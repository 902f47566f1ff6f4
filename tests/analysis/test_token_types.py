import csv

import numpy as np
import pytest

from lrk.analysis.counts import Counts
from lrk.analysis.token_types import token_types


def counts_of(count, top_count):
    return Counts(np.array(count), np.array(top_count))


def test_lift_is_share_among_the_top_over_share_among_all():
    #              frequent     rare, all top   never top    absent
    types = token_types(counts_of([600, 2, 398, 0], [180, 2, 18, 0]))
    assert sorted(types.token_ids.tolist()) == [0, 1, 2]
    lift = dict(zip(types.token_ids.tolist(), types.lift.tolist(), strict=True))
    assert lift == pytest.approx({0: (180 / 200) / 0.6, 1: 5.0, 2: (18 / 200) / 0.398})
    assert np.isnan(types.gain).all()


def test_rare_types_must_be_surer():
    """Both have lift 2.5; only of the frequent one it is known to exceed 1.5."""
    types = token_types(counts_of([8, 800, 9192], [4, 400, 1596]))
    assert types.impactful(1.5, 5).tolist() == [1]
    assert types.impactful(1.0, 5).tolist() == [1, 0][: len(types.impactful(1.0, 5))]
    assert types.impactful(1.5, 801).tolist() == []


def test_the_table_is_csv_with_texts_that_can_be_read(tmp_path):
    types = token_types(counts_of([100, 100], [40, 0]), np.array([12.5, -3.0]))
    types.write(tmp_path / "types.csv", ["\n", ',"'], np.array([0]))
    with (tmp_path / "types.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["\\n", ',"']
    assert [row["impactful"] for row in rows] == ["1", "0"]
    assert [row["gain"] for row in rows] == ["12.500", "-3.000"]
    assert float(rows[0]["lift"]) == 2.0
