import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable
from fractions import Fraction

import numpy as np
import pytest
import torch

from lrk import positions


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_equally_likely(counts: Counter, outcomes: list, name: str) -> None:
    """Pearson's chi-squared statistic within five standard deviations of its mean."""
    assert set(counts) <= set(outcomes), f"{name}: impossible outcomes"
    expected = sum(counts.values()) / len(outcomes)
    assert expected >= 20, "too few draws to say anything"
    statistic = sum((counts[outcome] - expected) ** 2 / expected for outcome in outcomes)
    freedom = len(outcomes) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom), f"{name}: not uniform"


def assert_distributed(counts: Counter, probabilities: dict, name: str) -> None:
    """Each outcome, and all that are too rare to test one by one, within five deviations."""
    num_draws = sum(counts.values())
    assert set(counts) <= {x for x, p in probabilities.items() if p > 0}, f"{name}: impossible"
    assert sum(probabilities.values()) == pytest.approx(1)
    rare = {x for x, p in probabilities.items() if num_draws * p < 20}
    common = [(counts[x], p) for x, p in probabilities.items() if x not in rare]
    assert common, "too few draws to say anything"
    common.append((sum(counts[x] for x in rare), sum(probabilities[x] for x in rare)))
    for count, probability in common:
        deviation = math.sqrt(num_draws * probability * (1 - probability))
        assert abs(count - num_draws * probability) <= 5 * deviation, f"{name}: wrong distribution"


def pushed_forward(probabilities: dict, outcome: Callable[..., Hashable]) -> dict:
    """The distribution of `outcome(x)` where `x` has the given one."""
    pushed: Counter = Counter()
    for x, probability in probabilities.items():
        pushed[outcome(x)] += probability
    return dict(pushed)


@pytest.mark.parametrize("method", sorted(positions.SAMPLERS))
@pytest.mark.parametrize("lengths", [[1], [7], [1, 1], [3, 1, 5, 2], [1] * 40])
@pytest.mark.parametrize("slack", [0, 1, 13, 100_000])
def test_contract_of_every_sampler(method, lengths, slack):
    target = sum(lengths) + slack
    sample = positions.SAMPLERS[method]
    for seed in range(5):
        drawn = sample(lengths, target, seeded(seed))
        assert drawn.dtype == torch.int64
        assert drawn.shape == (sum(lengths),)
        assert drawn[0] == 0
        assert drawn[-1] < target
        assert (drawn.diff() > 0).all()
        assert torch.equal(drawn, sample(torch.tensor(lengths), target, seeded(seed)))


@pytest.mark.parametrize("method", ["contiguous", "longrecipe"])
def test_steps_of_one_inside_segments(method):
    lengths = [4, 1, 9, 2, 6]
    inside = torch.ones(sum(lengths) - 1, dtype=torch.bool)
    inside[torch.tensor(lengths).cumsum(0)[:-1] - 1] = False
    for seed in range(50):
        drawn = positions.SAMPLERS[method](lengths, 100, seeded(seed))
        assert (drawn.diff()[inside] == 1).all()


@pytest.mark.parametrize("pin_end", [False, True])
def test_longrecipe_draws_every_layout_equally_often(pin_end):
    lengths, slack = [2, 1, 3, 1], 4
    generator = seeded(1)
    starts = torch.tensor([0, 2, 3, 6])
    layouts = [
        offsets
        for offsets in itertools.combinations_with_replacement(range(slack + 1), 3)
        if not pin_end or offsets[-1] == slack
    ]
    counts: Counter = Counter()
    for _ in range(100 * len(layouts)):
        drawn = positions.longrecipe(lengths, sum(lengths) + slack, generator, pin_end)
        counts[tuple((drawn[starts] - starts)[1:].tolist())] += 1
    assert_equally_likely(counts, layouts, "layouts")


def test_longrecipe_can_end_at_the_target():
    drawn = positions.longrecipe([5, 5, 5], 131_072, seeded(), pin_end=True)
    assert drawn[-1] == 131_071


def test_longrecipe_released_draws_what_its_code_draws():
    """All choices of slots and of a contiguous beginning, as that code writes them."""
    lengths, slack = [2, 1, 2], 2
    tokens, count = sum(lengths), len(lengths)
    starts = [0, 2, 3]
    expected: Counter = Counter()
    slots = list(itertools.combinations(range(slack + count), count))
    for chosen in slots:
        filled: list[list[int] | None] = [None] * (slack + count)
        for slot, start, length in zip((0, *chosen[1:]), starts, lengths, strict=True):
            filled[slot] = list(range(start, start + length))
        flat = [token for slot in filled for token in ([None] if slot is None else slot)]
        places = [flat.index(token) for token in range(tokens)]
        for contiguous in range(1, (tokens + 1) // 2 + 1):
            layout = (*range(contiguous), *places[contiguous:])
            expected[layout] += 1 / len(slots) / ((tokens + 1) // 2)
    generator = seeded(9)
    counts: Counter = Counter()
    for _ in range(4000):
        drawn = positions.longrecipe_released(lengths, tokens + slack, generator)
        counts[tuple(drawn.tolist())] += 1
    assert_distributed(counts, dict(expected), "layouts")


def test_longrecipe_released_has_the_distances_of_a_published_run():
    """Deciles of the distance of two tokens over the target, 24,000 tokens in 80,000."""
    tokens, target, sentence = 24_000, 80_000, 24
    generator = seeded(10)
    distances: dict[str, list[torch.Tensor]] = {"longrecipe": [], "longrecipe_released": []}
    for _ in range(200):
        ends = torch.randperm(tokens - 1, generator=generator)[: tokens // sentence - 1] + 1
        ends = torch.cat([torch.tensor([0]), ends.sort().values, torch.tensor([tokens])])
        pairs = torch.randint(tokens, (2, 4000), generator=generator)
        for method, found in distances.items():
            drawn = positions.SAMPLERS[method](ends.diff(), target, generator)
            found.append((drawn[pairs[0]] - drawn[pairs[1]]).abs() / target)
    shares = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    for method, published in (
        ("longrecipe_released", [0.035, 0.156, 0.328, 0.511, 0.769]),
        ("longrecipe", [0.051, 0.163, 0.293, 0.453, 0.684]),
    ):
        deciles = torch.cat(distances[method]).quantile(shares)
        assert deciles.tolist() == pytest.approx(published, abs=0.015), method


def test_pose_draws_lengths_and_skips_from_its_uniforms():
    num_tokens, slack = 10, 6
    generator = seeded(2)
    first_lengths: Counter = Counter()
    skips: Counter = Counter()
    for _ in range(4000):
        drawn = positions.pose([num_tokens], num_tokens + slack, generator)
        skip = int(drawn[-1]) - (num_tokens - 1)
        skips[skip] += 1
        if skip:
            first_lengths[int((drawn.diff() > 1).nonzero()) + 1] += 1
    assert_equally_likely(skips, list(range(slack + 1)), "skip")
    assert_equally_likely(first_lengths, list(range(1, 6)), "first chunk")


def test_pose_with_three_chunks_draws_each_skip_above_the_last():
    generator = seeded(3)
    pairs: Counter = Counter()
    for _ in range(6000):
        drawn = positions.pose([30], 33, generator, num_chunks=3)
        # A gap of 0 hides where a chunk ends, so only layouts with both gaps show both skips.
        gaps = (drawn.diff() - 1)[drawn.diff() > 1].tolist()
        if len(gaps) == 2:
            pairs[gaps[0], sum(gaps)] += 1
    # P(u1) = 1/4, P(u2 | u1) = 1/(4 - u1)
    expected = {(1, 2): 1 / 12, (1, 3): 1 / 12, (2, 3): 1 / 8}
    assert set(pairs) == set(expected)
    for pair, probability in expected.items():
        deviation = math.sqrt(6000 * probability * (1 - probability))
        assert abs(pairs[pair] - 6000 * probability) < 5 * deviation


def test_randpos_draws_every_subset_of_differences_as_defined():
    num_tokens, target = 3, 6
    generator = seeded(4)
    subsets = list(itertools.combinations(range(target), num_tokens))
    # Moving to 0 merges subsets of equal differences: weight each by how many there are.
    weights = Counter(tuple(p - subset[0] for p in subset) for subset in subsets)
    counts: Counter = Counter()
    num_draws = 4000
    for _ in range(num_draws):
        counts[tuple(positions.randpos([num_tokens], target, generator).tolist())] += 1
    assert set(counts) == set(weights)
    for outcome, weight in weights.items():
        probability = weight / len(subsets)
        deviation = math.sqrt(num_draws * probability * (1 - probability))
        assert abs(counts[outcome] - num_draws * probability) < 5 * deviation


def cream_by_definition(window: int, factor: int, sigma: float) -> dict[tuple[int, int], float]:
    """Probability of each (head, end of the middle), METHODS' wording turned into sums."""

    def cumulative(x: float) -> float:
        return (1 + math.erf((x - (1 + factor)) / (sigma * math.sqrt(2)))) / 2

    layouts: Counter = Counter()
    for head in (window // 3, 4 * factor):
        middle = window - 2 * head
        for r in range(2, 2 * factor + 1):
            # What is beyond the ends of [2, 2 a] takes the ends.
            above = 1.0 if r == 2 * factor else cumulative(r + 1)
            probability = above - (0.0 if r == 2 else cumulative(r))
            first = math.floor(head + (middle - 1) * r / 2)
            last = math.floor(r / 2 * window - head - 1)
            for end in range(first, last + 1):
                layouts[head, end] += probability / 2 / (last + 1 - first)
    return dict(layouts)


@pytest.mark.parametrize(("window", "factor", "sigma"), [(39, 3, 3.0), (39, 3, 0.7), (99, 8, 3.0)])
def test_cream_draws_variant_and_middle_as_defined(window, factor, sigma):
    target = window * factor
    expected = cream_by_definition(window, factor, sigma)
    by_layout = {}
    for head, end in expected:
        middle = range(end + 1 - (window - 2 * head), end + 1)
        by_layout[(*range(head), *middle, *range(target - head, target))] = head, end
    assert len(by_layout) == len(expected)
    generator = seeded(5)
    draws: Counter = Counter()
    for _ in range(4000):
        drawn = positions.cream([20, window - 20], target, generator, sigma)
        draws[by_layout[tuple(drawn.tolist())]] += 1

    def by_place(layout: tuple[int, int]) -> tuple[int, int]:
        head, end = layout
        return head, 24 * end // target

    places: Counter = Counter()
    for layout, count in draws.items():
        places[by_place(layout)] += count
    assert_distributed(places, pushed_forward(expected, by_place), "middle")


@pytest.mark.parametrize(
    ("factor", "shares"),  # of r, as the released code draws it
    [
        (2, {2: 0.5, 3: 0.1306, 4: 0.3694}),
        (4, {2: 0.2525, 3: 0.1169, 4: 0.1306, 5: 0.1306, 6: 0.1169, 7: 0.0938, 8: 0.1587}),
    ],
)
def test_cream_lets_the_middle_reach_the_tail(monkeypatch, factor, shares):
    """At the upper end of what it may be, the end of the middle says what `r` is."""
    monkeypatch.setattr(positions, "_uniform", lambda low, high, generator: high)
    window, generator = 300, seeded(8)
    counts: Counter = Counter()
    for _ in range(4000):
        drawn = positions.cream([window], window * factor, generator)
        counts[2 * (int(drawn[window - 101]) + 101) // window] += 1
    assert_distributed(counts, {r: p / sum(shares.values()) for r, p in shares.items()}, "r")


def test_cream_needs_a_sigma_that_grows_to_reach_the_end_of_a_long_target():
    window, factor = 1200, 64

    def share_beyond_the_centre(sigma: float) -> float:
        generator = seeded(6)
        ends = [
            int(positions.cream([window], window * factor, generator, sigma)[window // 2])
            for _ in range(300)
        ]
        return sum(end > 0.6 * window * factor for end in ends) / len(ends)

    # r is at most 1 + 64 + 4 * 3 then, and the middle ends before r / 2 windows.
    assert share_beyond_the_centre(3.0) == 0
    assert share_beyond_the_centre(3 * factor / 8) > 0.05


@pytest.mark.parametrize(("window", "target"), [(8, 32), (8, 24), (6, 20)])
def test_e2_draws_scale_and_shift_as_defined(window, target):
    factor = Fraction(target, window)
    expected: Counter = Counter()
    for scale in range(1, math.floor(factor) + 1):
        for shift in range((scale - 1) * window + 1):
            interpolated = [
                Fraction(token + (shift if token >= 4 else 0), scale) for token in range(window)
            ]
            assert max(interpolated) < window
            layout = tuple(math.floor(position * factor) for position in interpolated)
            expected[layout] += 1 / math.floor(factor) / ((scale - 1) * window + 1)
    generator = seeded(7)
    counts: Counter = Counter()
    for _ in range(4000):
        counts[tuple(positions.e2([window], target, generator).tolist())] += 1
    assert_distributed(counts, dict(expected), "scale and shift")


def test_endprompt_puts_text_first_and_prompt_last():
    for prompt in (18, 20):
        drawn = positions.endprompt([30, 50, prompt], 65_536, prompt_length=prompt)
        assert drawn.tolist() == [*range(80), *range(65_536 - prompt, 65_536)]
    assert positions.endprompt([3], 100).tolist() == [0, 98, 99]


@pytest.mark.parametrize(
    ("theta", "length", "target", "head_dim", "published"),
    [
        (5e5, 8192, 81_920, 128, 48.9e6),  # Llama-3-8B
        (5e5, 8192, 131_072, 128, 131.5e6),
        (1e6, 32_768, 131_072, 128, 13.5e6),  # Qwen2-7B, Mistral-7B-v0.3
    ],
)
def test_scaled_rope_theta_gives_the_published_bases(theta, length, target, head_dim, published):
    assert positions.scaled_rope_theta(theta, length, target, head_dim) == pytest.approx(
        published, rel=4e-3
    )


def test_scaled_rope_theta_leaves_an_unextended_model_alone():
    assert positions.scaled_rope_theta(1e4, 4096, 4096, 64) == 1e4


@pytest.mark.parametrize("method", sorted(positions.SAMPLERS))
def test_bad_lengths_are_named(method):
    sample = positions.SAMPLERS[method]
    with pytest.raises(ValueError, match="target_length is 9; it must be at least the 10 tokens"):
        sample([4, 6], 9, seeded())
    for lengths in ([], [3, 0], [[1, 2]], [1.5], [True, True], ["3"], [[1], [2, 3]], [2**70]):
        with pytest.raises(ValueError, match="segment_lengths is"):
            sample(lengths, 100, seeded())


@pytest.mark.parametrize("method", sorted(positions.SAMPLERS))
def test_a_target_is_an_integer(method):
    sample = positions.SAMPLERS[method]
    assert torch.equal(sample([4, 6], np.int64(30), seeded()), sample([4, 6], 30, seeded()))
    for target in (30.0, "30", None, True, 2**70):
        with pytest.raises((TypeError, ValueError), match="target_length is "):
            sample([4, 6], target, seeded())


def test_bad_options_are_named():
    with pytest.raises(TypeError, match=r"num_chunks is 2\.0, of type float: must be an integer"):
        positions.pose([4], 10, seeded(), num_chunks=2.0)
    with pytest.raises(TypeError, match="sigma is '3', of type str: must be a real number"):
        positions.cream([4], 10, seeded(), "3")
    with pytest.raises(TypeError, match="pin_end is 'false', of type str: must be True or False"):
        positions.longrecipe([4, 4], 10, seeded(), pin_end="false")
    with pytest.raises(TypeError, match=r"head_dim is 64\.0, of type float"):
        positions.scaled_rope_theta(1e4, 8, 9, 64.0)
    with pytest.raises(ValueError, match="pin_end=True needs at least 2 segments"):
        positions.longrecipe([4], 10, seeded(), pin_end=True)
    with pytest.raises(ValueError, match="num_chunks is 0; it must be at least 1"):
        positions.pose([4], 10, seeded(), num_chunks=0)
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"sigma is {sigma}; it must be positive and finite"):
            positions.cream([4], 10, seeded(), sigma)
    with pytest.raises(ValueError, match="num_unshifted is 0; it must be at least 1"):
        positions.e2([4], 10, seeded(), num_unshifted=0)
    with pytest.raises(ValueError, match="prompt_length is 0; it must be at least 1"):
        positions.endprompt([4], 10, prompt_length=0)
    with pytest.raises(ValueError, match="length is 9; it must be positive and at most target, 8"):
        positions.scaled_rope_theta(1e4, 9, 8, 64)
    with pytest.raises(ValueError, match="head_dim is 2"):
        positions.scaled_rope_theta(1e4, 8, 9, 2)
    with pytest.raises(ValueError, match="theta is 0"):
        positions.scaled_rope_theta(0, 8, 9, 64)
