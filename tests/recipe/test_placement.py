from typing import Any

import torch

from lrk import positions
from lrk.recipe import PlacedSamples, Placement, Sample


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


def test_evaluation_positions_never_change():
    class Rows(list[Any]):
        pass

    placement = Placement(1000, seed=1)
    placed = PlacedSamples(Rows([sample(0), sample(1)]), placement)  # type: ignore[arg-type]
    assert len(placed) == 2
    assert torch.equal(placed[1]["position_ids"], placed[1]["position_ids"])
    assert torch.equal(placed[1]["position_ids"], placement.position_ids(sample(1)))
