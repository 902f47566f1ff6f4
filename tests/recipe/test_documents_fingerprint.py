"""The fingerprint of documents: what they hold, however it is stored."""

import pytest
from datasets import Dataset, concatenate_datasets

from lrk.recipe import Samples
from lrk.recipe.fingerprint import documents_fingerprint
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.tokens import FEATURES

ROWS = [([5, 6, 7, 8], [1, 3]), ([9, 1], [2]), ([2, 3, 4], [3])] * 200


def documents(rows) -> Dataset:
    ids, segments = zip(*rows, strict=True)
    columns = {"input_ids": list(ids), "segment_lengths": list(segments)}
    return Dataset.from_dict(columns, features=FEATURES)


def test_it_does_not_depend_on_shards_or_indices(tmp_path):
    whole = documents(ROWS)
    expected = documents_fingerprint(whole)
    parts = concatenate_datasets(
        [documents(ROWS[:7]), documents(ROWS[7:301]), documents(ROWS[301:])]
    )
    assert documents_fingerprint(parts) == expected
    whole.save_to_disk(tmp_path)
    assert documents_fingerprint(Dataset.load_from_disk(tmp_path)) == expected
    backwards = documents(ROWS[::-1]).select(range(len(ROWS) - 1, -1, -1))
    assert documents_fingerprint(backwards) == expected
    prepared = whole.add_column("source", [0] * len(ROWS))
    assert documents_fingerprint(prepared) == expected


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param([*ROWS[:-1], ([2, 3, 5], [3])], id="a token"),
        pytest.param([*ROWS[:-1], ([2, 3, 4], [1, 2])], id="a segment"),
        pytest.param([ROWS[1], ROWS[0], *ROWS[2:]], id="the order"),
        pytest.param([([5, 6, 7], [1, 3]), ([8, 9, 1], [2]), *ROWS[2:]], id="where one ends"),
        pytest.param(ROWS[:-1], id="one fewer"),
    ],
)
def test_every_change_shows(changed):
    assert documents_fingerprint(documents(changed)) != documents_fingerprint(documents(ROWS))


def test_of_samples_and_mixtures():
    one, other = Samples(documents(ROWS), 4), Samples(documents(ROWS[::-1]), 4)
    assert one.fingerprint() == documents_fingerprint(documents(ROWS))
    mixed = MixedSamples([one, other], [0.5, 0.5]).fingerprint()
    assert mixed != MixedSamples([other, one], [0.5, 0.5]).fingerprint()
