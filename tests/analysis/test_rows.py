import numpy as np
import pytest

from lrk.analysis import rows as module
from lrk.analysis.rows import Rows, column_blocks
from lrk.atomic import SaveError


def test_rows_are_there_again_and_a_row_that_was_cut_short_is_not(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    rows = Rows(tmp_path / "x", 4, np.float32)
    assert len(rows) == 0
    for row in table[:2]:
        rows.append(row)
    with (tmp_path / "x").open("ab") as file:
        file.write(b"killed")
    again = Rows(tmp_path / "x", 4, np.float32)
    assert len(again) == 2
    again.append(table[2])
    assert np.array_equal(again.array(), table)
    assert again.array().dtype == np.float32


def test_a_damaged_row_and_those_after_it_are_missing(tmp_path):
    rows = Rows(tmp_path / "x", 4, np.int32)
    for row in np.arange(12).reshape(3, 4):
        rows.append(row)
    content = bytearray((tmp_path / "x").read_bytes())
    content[20 + 5] ^= 1
    (tmp_path / "x").write_bytes(content)
    again = Rows(tmp_path / "x", 4, np.int32)
    assert again.array().tolist() == [[0, 1, 2, 3]]


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(SaveError, match="could not be written"):
        Rows(tmp_path / "absent" / "x", 4, np.int8).append(np.zeros(4, np.int8))


def test_blocks_cover_each_place_once_and_shrink_with_more_rows(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 60)
    for samples in (1, 7, 100):
        blocks = list(column_blocks(samples, 3, 50))
        assert [place for block in blocks for place in range(50)[block]] == list(range(3, 50))
        assert all((block.stop - block.start) * samples <= max(60, samples) for block in blocks)
