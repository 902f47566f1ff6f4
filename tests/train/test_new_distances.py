"""What a run trains beyond the window is counted; a run that trains nothing there is refused."""

import itertools
import json
import logging

import pytest
import torch
from transformers import MistralConfig

from lrk.positions import SAMPLERS
from lrk.recipe import Placement
from lrk.train import train
from lrk.train.dry_run import dry_run
from lrk.train.new_distances import SURVEYED, check_new_distances
from lrk.train.session import set_up
from tests.train.conftest import prose, tiny_config

CONFIG = tiny_config()


class Fixed:
    """Samples of two documents."""

    def __init__(self, documents: list[list[int]], count: int = 3) -> None:
        self.documents, self.count = documents, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        lengths = [torch.tensor(segments) for segments in self.documents]
        return {
            "index": index,
            "input_ids": torch.arange(sum(map(sum, self.documents))),
            "segment_lengths": lengths,
        }


def by_hand(samples: Fixed, placement: Placement, window: int) -> tuple[int, int, int]:
    """All pairs, one by one."""
    pairs = new_pairs = 0
    distances = set()
    for number in range(SURVEYED):
        placed = placement.placed(samples[number % len(samples)], number // len(samples))
        documents = placed["position_ids"].split([sum(each) for each in samples.documents])
        for positions in documents:
            for key, query in itertools.combinations_with_replacement(positions.tolist(), 2):
                pairs += 1
                new_pairs += query - key >= window
                distances |= {query - key} if query - key >= window else set()
    return pairs, new_pairs, len(distances)


@pytest.mark.parametrize("method", sorted(set(SAMPLERS) - {"contiguous"}))
@pytest.mark.parametrize("documents", [[[5, 3, 9, 4]], [[6, 2], [3, 3, 7]]], ids=str)
def test_pairs_and_distances_are_those_counted_one_by_one(method, documents):
    samples = Fixed(documents)
    spread = Placement(60, method)
    found = check_new_distances(samples, Placement(60, method, 0.3), 60, 24, CONFIG)
    assert (found.pairs, found.new_pairs, found.distances) == by_hand(samples, spread, 24)
    assert found.spreads == pytest.approx(0.7)


def test_cells_stand_for_positions_where_these_are_many(monkeypatch):
    samples, placement = Fixed([[5, 3, 9, 4]]), Placement(64, "pose")
    exact = check_new_distances(samples, placement, 64, 24, CONFIG)
    monkeypatch.setattr("lrk.train.new_distances.MOST_CELLS", 32)
    rough = check_new_distances(samples, placement, 64, 24, CONFIG)
    assert (rough.pairs, rough.new_pairs) == (exact.pairs, exact.new_pairs)
    assert rough.distances == pytest.approx(exact.distances, abs=8)


def test_text_of_one_segment_trains_nothing_by_gaps_between_segments():
    message = (
        "none of the first samples has a distance beyond the model's window of 24, so "
        "target_length 60 would not be trained: position_method 'longrecipe' skips nowhere .*"
        "'pose'"
    )
    with pytest.raises(ValueError, match=message):
        check_new_distances(Fixed([[21]]), Placement(60, "longrecipe", 0.3), 60, 24, CONFIG)
    assert check_new_distances(Fixed([[21]]), Placement(60, "pose", 0.3), 60, 24, CONFIG).new_pairs


@pytest.mark.parametrize("farthest", [30, 60, 90])
def test_a_distance_that_no_layer_sees_is_not_new(farthest):
    """A sliding window that is longer than the model's, in all layers."""
    samples, placement = Fixed([[5, 3, 9, 4]]), Placement(60, "pose")
    windowed = MistralConfig(num_hidden_layers=2, sliding_window=farthest)
    found = check_new_distances(samples, placement, 60, 24, windowed)
    all_pairs, new, distances = by_hand(samples, placement, 24)
    _, unseen, unseen_distances = by_hand(samples, placement, farthest)
    assert (found.pairs, found.new_pairs) == (all_pairs, new - unseen)
    assert found.distances == distances - unseen_distances
    assert (found.new_pairs < new) == (farthest == 30)
    assert f"of the {min(farthest, 60) - 24} distances that are new; all 2 layers" in str(found)


def test_a_window_that_is_there_needs_nothing_new():
    assert check_new_distances(Fixed([[21]]), Placement(60, "longrecipe"), 60, 60, CONFIG) is None


def test_ordinary_positions_may_be_meant_and_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        found = check_new_distances(Fixed([[21]]), Placement(60, "contiguous"), 60, 24, CONFIG)
    assert found.new_pairs == 0
    assert "few distances beyond the window are trained: 0.00% of the pairs" in caplog.text


def test_few_are_a_warning_with_the_figure(caplog):
    """Of 36 distances `endprompt` shows those between 20 tokens and a prompt of one."""
    with caplog.at_level(logging.WARNING):
        found = check_new_distances(
            Fixed([[20, 1]]), Placement(4000, "endprompt", ending=()), 4000, 24, CONFIG
        )
    assert found.are_few
    assert f"have {found.distances:,} of the 3,976 distances that are new" in caplog.text


@pytest.mark.parametrize("start", [dry_run, set_up])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_that_extends_nothing_is_refused(arguments, tmp_path, start, streaming):
    """One sentence without an end in each document, and packed by itself."""
    for number in range(4):
        text = prose(200, number).replace(". ", " ").rstrip(".")
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    made = arguments(
        data=[str(tmp_path / "*.jsonl")],
        position_method="longrecipe",
        train_length=16,
        streaming=streaming,
    )
    with pytest.raises(ValueError, match="would not be trained: position_method 'longrecipe'"):
        start(made)


def test_the_dry_run_and_the_model_card_say_it(arguments, tmp_path):
    statement = "of the pairs of tokens in the 70% of samples that skip lie beyond the model's"
    description = dry_run(arguments())
    assert f"{statement} window of 64;" in description
    assert "that are new; all 2 layers are reached" in description
    train(arguments())
    card = (tmp_path / "run" / "README.md").read_text()
    assert statement in card
    assert "that are new; all 2 layers are reached |" in card
