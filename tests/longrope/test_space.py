"""What is searched, beside the equations of 2502.20082."""

import math
from random import Random

import pytest
import torch

from lrk.longrope.space import Candidate, SearchSpace


def frequencies(theta: float, pairs: int) -> torch.Tensor:
    return theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


@pytest.mark.parametrize(
    ("theta", "pairs", "window", "critical"),
    [(1e4, 48, 2048, 31), (5e5, 64, 8192, 35)],
    ids=["Phi-3-mini", "Llama-3-8B"],
)
def test_the_theoretical_critical_dimension_is_that_of_the_paper(theta, pairs, window, critical):
    space = SearchSpace.of(frequencies(theta, pairs), window, 131_072)
    assert space.highest == critical
    # Algorithm 1, line 2.
    assert space.lowest == math.ceil(pairs * math.log(window / (20 * math.pi), theta))
    assert space.ratio == 131_072 / window


def test_there_is_something_on_both_sides_of_the_critical_dimension():
    slow = SearchSpace.of(frequencies(1e4, 4), 6, 60)
    assert (slow.lowest, slow.highest) == (1, 1)
    fast = SearchSpace.of(torch.ones(4, dtype=torch.float64), 1000, 2000)
    assert (fast.lowest, fast.highest) == (3, 3)


def test_below_the_critical_dimension_the_base_is_larger():
    theta, pairs = 1e4, 16
    candidate = Candidate(6, (9.5, 9.5, 10.0, *[16.0] * 7))
    found = frequencies(theta, pairs) / torch.tensor(candidate.factors, dtype=torch.float64)
    base = theta * 9.5 ** (pairs / 6)
    torch.testing.assert_close(found[:7], frequencies(base, pairs)[:7], rtol=1e-13, atol=0)
    assert candidate.factors[6:] == candidate.searched
    assert candidate.factors[0] == 1


def test_candidates_stay_within_bounds_and_never_fall():
    space, random = SearchSpace.of(frequencies(5e5, 64), 8192, 24_576), Random(0)
    some = [space.initial(critical, random) for critical in range(space.lowest, space.highest + 1)]
    assert all(len(set(candidate.searched)) == 1 for candidate in some)
    for _ in range(300):
        one, other = random.sample(some, 2)
        mutated, crossed = space.mutated(one, 0.3, random), space.crossed(one, other, random)
        assert mutated.critical == crossed.critical == one.critical
        some += [mutated, crossed]
    for candidate in some:
        assert len(candidate.factors) == 64
        assert list(candidate.factors) == sorted(candidate.factors)
        assert candidate.searched[0] >= 3
        assert candidate.searched[-1] <= 6


def test_a_crossing_has_factors_of_both():
    space, random = SearchSpace(8, 2.0, 1, 3), Random(1)
    one, other = Candidate(2, (2.5,) * 6), Candidate(3, (3.5,) * 5)
    crossings = [space.crossed(one, other, random) for _ in range(50)]
    # At dimension 2 the other's own factor is 3.5 ** (2 / 3), which is above the bound.
    assert {factor for crossing in crossings for factor in crossing.searched} == {
        2.5, 3.5, 3.5 ** (2 / 3)
    }  # fmt: skip
    low = Candidate(3, (2.1,) * 5)
    crossings = [space.crossed(one, low, random) for _ in range(50)]
    assert {factor for crossing in crossings for factor in crossing.searched} == {2.0, 2.1, 2.5}


def test_a_mutation_draws_as_many_factors_as_the_probability_says():
    space, random = SearchSpace(60, 2.0, 1, 10), Random(2)
    before = Candidate(10, (3.0,) * 50)
    kept = [space.mutated(before, 0.3, random).searched.count(3.0) for _ in range(100)]
    assert sum(kept) / 5000 == pytest.approx(0.7, abs=0.03)
    assert space.mutated(before, 1.0, random).searched.count(3.0) == 0


@pytest.mark.parametrize(
    ("pairs", "target", "message"),
    [
        (4, 64, "target_length is 64; it must be more than the 64 positions"),
        (1, 128, "the model rotates 2 dimensions; a search needs 4 or more"),
    ],
)
def test_nothing_to_search(pairs, target, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.of(frequencies(1e4, pairs), 64, target)
