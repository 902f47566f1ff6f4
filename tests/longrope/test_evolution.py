"""The evolution on a loss that is known."""

import math

import pytest

from lrk.longrope.evolution import Evolution
from lrk.longrope.space import Candidate, SearchSpace

SPACE = SearchSpace(dims=16, ratio=8.0, lowest=2, highest=6)
OPTIMUM = Candidate(4, (8.5, 9.0, 9.5, 10.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 15.5, 15.5))


def distance(candidate: Candidate) -> float:
    pairs = zip(candidate.factors, OPTIMUM.factors, strict=True)
    return sum((math.log(one) - math.log(other)) ** 2 for one, other in pairs)


def test_it_nears_the_optimum_and_its_critical_dimension():
    tried = []

    def loss(candidate: Candidate) -> float:
        tried.append(candidate)
        return distance(candidate)

    evolution = Evolution()
    best = evolution.best(SPACE, loss)
    assert best.critical == OPTIMUM.critical
    first = min(map(distance, tried[: evolution.population]))
    assert distance(best) == min(map(distance, tried)) < first / 10
    assert len(tried) == evolution.trials(SPACE) == 64 + 40 * 32
    assert [candidate.critical for candidate in tried[:5]] == [2, 3, 4, 5, 6]


def test_the_seed_decides_and_more_iterations_go_on_alike():
    def tried_with(evolution: Evolution) -> list[Candidate]:
        tried: list[Candidate] = []
        evolution.best(SPACE, lambda candidate: tried.append(candidate) or distance(candidate))
        return tried

    short = tried_with(Evolution(8, 3, seed=1))
    assert tried_with(Evolution(8, 6, seed=1))[: len(short)] == short
    assert tried_with(Evolution(8, 3, seed=2)) != short


def test_a_small_population_tries_every_critical_dimension():
    evolution = Evolution(population=4, iterations=0)
    tried: set[int] = set()
    evolution.best(SPACE, lambda candidate: tried.add(candidate.critical) or 0.0)
    assert tried == {2, 3, 4, 5, 6}
    assert evolution.trials(SPACE) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"population": 3}, "population is 3; it must be at least 4"),
        ({"iterations": -1}, "iterations is -1; it must be 0 or positive"),
        ({"mutation_probability": 0.0}, "mutation_probability is 0.0; it must be above 0"),
        ({"mutation_probability": math.nan}, "mutation_probability is nan"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Evolution(**values)
