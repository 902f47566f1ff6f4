from typing import Any

import pytest
import torch

from lrk import positions
from lrk.recipe import PlacedSamples, Placement, Sample
from lrk.recipe.selection import BETWEEN_SENTENCES


def sample(index: int = 0, documents: tuple[tuple[int, ...], ...] = ((5, 7, 4),)) -> Sample:
    lengths = [torch.tensor(part) for part in documents]
    return {
        "index": index,
        "input_ids": torch.arange(int(torch.cat(lengths).sum())),
        "segment_lengths": lengths,
    }


def test_positions_depend_on_seed_epoch_and_index_alone():
    placement = Placement(1000, seed=3)
    once = placement.position_ids(sample(5), epoch=2)
    torch.manual_seed(0)
    placement.position_ids(sample(6), epoch=2)
    assert torch.equal(placement.position_ids(sample(5), epoch=2), once)
    assert not torch.equal(placement.position_ids(sample(5), epoch=3), once)
    assert not torch.equal(placement.position_ids(sample(6), epoch=2), once)
    assert not torch.equal(Placement(1000, seed=4).position_ids(sample(5), epoch=2), once)


def test_steps_inside_a_segment_are_one():
    position_ids = Placement(1000).position_ids(sample())
    assert position_ids[0] == 0
    assert position_ids[-1] < 1000
    steps = position_ids.diff()
    inner = torch.ones(15, dtype=torch.bool)
    inner[[4, 11]] = False
    assert (steps[inner] == 1).all()
    assert (steps >= 1).all()


def test_each_document_of_a_packed_sample_starts_at_zero():
    position_ids = Placement(1000).position_ids(sample(0, ((3, 3, 3), (2, 2, 2), (1,))))
    first, second, third = position_ids.split([9, 6, 1])
    for part in (first, second):
        assert part[0] == 0
        assert part[-1] > len(part)
        assert (part.diff() >= 1).all()
    assert third.tolist() == [0]


def test_the_share_of_contiguous_samples():
    placement = Placement(10_000, contiguous_share=0.3)
    last = [int(placement.position_ids(sample(i))[-1]) for i in range(1000)]
    contiguous = sum(value == 15 for value in last)
    # Binomial(1000, 0.3) has a standard deviation of 14.5; a random layout ends at 15 once in 5e7.
    assert abs(contiguous - 300) < 5 * 14.5


def test_every_sampler_can_place(monkeypatch):
    for method in positions.SAMPLERS:
        last = int(Placement(1000, method).position_ids(sample())[-1])
        assert (last == 15) == (method == "contiguous")


def test_the_end_can_be_pinned():
    """Not where there is one sentence, which starts at 0, nor in ordinary positions."""
    placement = Placement(1000, pin_end=True)
    first, second, single = placement.position_ids(sample(0, ((3, 3), (2, 2, 2), (4,)))).split(
        [6, 6, 4]
    )
    assert (first[-1], second[-1]) == (999, 999)
    assert single.tolist() == [0, 1, 2, 3]
    contiguous = Placement(1000, pin_end=True, contiguous_share=1.0)
    assert contiguous.position_ids(sample())[-1] == 15


def test_an_ending_stands_at_the_end_of_the_target():
    placement = Placement(1000, "endprompt", train_length=16, ending=(7, 8, 9))
    placed = placement.placed(sample(0, ((5, 7, 1),)))
    assert placed["input_ids"].tolist() == [*range(13), 7, 8, 9]
    assert placed["position_ids"].tolist() == [*range(13), 997, 998, 999]
    assert [part.tolist() for part in placed["segment_lengths"]] == [[5, 7, 1, 3]]
    packed = {**sample(0, ((5,), (7, 1))), "is_label": torch.zeros(13, dtype=torch.bool)}
    placed = placement.placed(packed)  # type: ignore[arg-type]
    assert [part.tolist() for part in placed["segment_lengths"]] == [[5], [7, 1, 3]]
    assert placed["position_ids"][-4:].tolist() == [7, 997, 998, 999]
    assert placed["is_label"].tolist() == [False] * 13 + [True] * 3
    long = long_sample(400, 0)
    placed = placement.placed({**long, "segment_lengths": [torch.tensor([400])]})
    assert placed["input_ids"].tolist() == [*range(13), 7, 8, 9]


@pytest.mark.parametrize("contiguous_share", [0.0, 1.0])
@pytest.mark.parametrize("length", [13, 14, 15, 16, 17, 40, 99, 100])
def test_an_ending_follows_text_at_positions(length, contiguous_share):
    """Of 13 tokens of text, then 3 of the ending, however long the stretch and the layout are."""
    ending = (-1, -2, -3)
    placement = Placement(
        100, "endprompt", contiguous_share, seed=5, train_length=16, ending=ending
    )
    document = long_sample(length, 0)
    placed = placement.placed(document)
    assert placed["input_ids"].tolist() == [*range(13), *ending]
    assert placed["is_label"].tolist() == [i % 2 == 0 for i in range(13)] + [True] * 3
    assert sum(int(part.sum()) for part in placed["segment_lengths"]) == 16
    tail = [13, 14, 15] if contiguous_share else [97, 98, 99]
    assert placed["position_ids"].tolist() == [*range(13), *tail]
    assert torch.equal(placement.position_ids(document), placed["position_ids"])


def test_evaluation_positions_never_change():
    class Rows(list[Any]):
        pass

    placement = Placement(1000, seed=1)
    placed = PlacedSamples(Rows([sample(0), sample(1)]), placement)  # type: ignore[arg-type]
    assert len(placed) == 2
    assert torch.equal(placed[1]["position_ids"], placed[1]["position_ids"])
    assert torch.equal(placed[1]["position_ids"], placement.position_ids(sample(1)))


def long_sample(length: int, index: int) -> Any:
    """A document in which token `i` is `i`, and predicted where `i` is even."""
    ids = torch.arange(length)
    segments = [torch.tensor([length - 3, 3])]
    return {"index": index, "input_ids": ids, "segment_lengths": segments, "is_label": ids % 2 == 0}


def test_text_at_positions_of_a_document_of_the_target_s_length():
    placement = Placement(1000, "cream", train_length=90)
    for index in range(20):
        placed = placement.placed(long_sample(1000, index))
        assert torch.equal(placed["input_ids"], placed["position_ids"])
        assert torch.equal(placed["is_label"], placed["input_ids"] % 2 == 0)
        assert [part.tolist() for part in placed["segment_lengths"]] == [[90]]


def test_cream_takes_head_and_tail_and_the_middle_where_the_document_has_it():
    """The middle at its own indices if the document reaches them, else before the tail."""
    length, target, train = 400, 1000, 90
    placement = Placement(target, "cream", train_length=train)
    reached = []
    for index in range(200):
        placed = placement.placed(long_sample(length, index))
        ids, positions_ = placed["input_ids"], placed["position_ids"]
        head = int((positions_ == torch.arange(train)).sum())
        tail = int((positions_ == torch.arange(target - train, target)).sum())
        head, tail = min(head, train // 3), min(tail, train // 3)
        assert ids[:head].tolist() == list(range(head))
        assert ids[train - tail :].tolist() == list(range(length - tail, length))
        end = int(positions_[train - tail - 1])
        reached.append(end < length - tail)
        middle = slice(head, train - tail)
        if reached[-1]:
            assert torch.equal(ids[middle], positions_[middle])
        else:
            start = length - tail - (train - head - tail)
            assert ids[middle].tolist() == list(range(start, length - tail))
        assert (ids.diff() > 0).all(), "nothing is taken twice"
    assert 20 < sum(reached) < 180, "both cases must be met"


@pytest.mark.parametrize("method", sorted(set(positions.SAMPLERS) - set(BETWEEN_SENTENCES)))
def test_text_at_positions_for_every_sampler_that_needs_no_sentences(method):
    placement = Placement(500, method, train_length=40, seed=2)
    for length in (40, 41, 200, 500):
        placed = placement.placed(long_sample(length, 0))
        assert len(placed["input_ids"]) == len(placed["position_ids"]) == 40
        assert (placed["input_ids"].diff() > 0).all()
        assert torch.equal(placement.position_ids(long_sample(length, 0)), placed["position_ids"])
