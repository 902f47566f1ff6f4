"""What has been tried is not computed again."""

import pytest

from lrk.longrope.space import Candidate
from lrk.longrope.trials import Trials

ONE, OTHER = Candidate(2, (2.1, 0.1 + 0.2)), Candidate(3, (2.1,))


def never(candidate: Candidate) -> float:
    raise AssertionError(candidate)


def test_losses_are_kept(tmp_path):
    file = tmp_path / "trials.json"
    trials = Trials(file)
    assert trials.loss(ONE, lambda candidate: 1 / 3) == 1 / 3
    assert trials.loss(OTHER, lambda candidate: 0.25) == 0.25
    assert trials.loss(ONE, never) == 1 / 3
    again = Trials(file)
    assert len(again) == 2
    assert (again.loss(ONE, never), again.loss(OTHER, never)) == (1 / 3, 0.25)
    assert (again.lowest_of(1), again.lowest_of(2)) == (1 / 3, 0.25)
    assert again.best() == (OTHER, 0.25)


def test_a_trial_that_fails_is_not_kept(tmp_path):
    trials = Trials(tmp_path / "trials.json")
    with pytest.raises(AssertionError):
        trials.loss(ONE, never)
    assert len(trials) == len(Trials(tmp_path / "trials.json")) == 0


def test_a_damaged_file(tmp_path):
    file = tmp_path / "trials.json"
    Trials(file).loss(ONE, lambda candidate: 0.5)
    file.write_text(file.read_text().replace("0.5", "0.4"))
    with pytest.raises(ValueError, match=r"trials\.json' is damaged"):
        Trials(file)
