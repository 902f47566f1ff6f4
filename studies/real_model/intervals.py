"""95 % intervals: of a share of trials, and of the ratio of two models' scores."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lrk.wilson import wilson_interval

Z = 1.959964
RESAMPLES = 10_000

Trial = tuple[str, int, float, int, int]
"""Task, length, depth, seed and number: what tells a prompt from all others."""


def wilson(hits: float, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share, 0 to 1; all trials count as independent.

    Args:
        hits: of the trials.
        trials: at least 1.
    """
    low, high = wilson_interval(np.array(hits), np.array(trials), Z)
    return float(low), float(high)


class Ratio(NamedTuple):
    """Scores of two models on the same prompts, 0 to 1, and their ratio with its interval.

    `ratio`, `low` and `high` are None where the score divided by is 0; an interval that has no
    upper end is infinite there. `shortest` and `longest` are the prompts' lengths in tokens.
    """

    score: float
    other: float
    ratio: float | None
    low: float | None
    high: float | None
    prompts: int
    shortest: int
    longest: int


def ratio_of_scores(scores: Mapping[Trial, float], others: Mapping[Trial, float]) -> Ratio:
    """Paired bootstrap (percentiles, 10,000 resamples) over the prompts that both were asked.

    A score is the mean over tasks and lengths, each of the same weight; prompts are drawn anew
    within each task and length. Seeds of training are taken as they are: two cannot be resampled.

    Raises:
        ValueError: if they share no prompt.
    """
    shared = sorted(scores.keys() & others.keys())
    if not shared:
        raise ValueError("the two models were asked no prompt in common")
    groups: dict[tuple[str, int], list[Trial]] = {}
    for trial in shared:
        groups.setdefault(trial[:2], []).append(trial)
    generator = np.random.default_rng(0)
    drawn = np.zeros((2, RESAMPLES))
    means = np.zeros(2)
    for trials in groups.values():
        pairs = np.array([[by[trial] for trial in trials] for by in (scores, others)])
        means += pairs.mean(axis=1)
        chosen = generator.integers(len(trials), size=(RESAMPLES, len(trials)))
        drawn += pairs[:, chosen].mean(axis=2)
    score, other = (means / len(groups)).tolist()
    lengths = [length for _, length in groups]
    about = (len(shared), min(lengths), max(lengths))
    if other == 0:
        return Ratio(score, other, None, None, None, *about)
    ratios = np.full(RESAMPLES, np.inf)
    np.divide(drawn[0], drawn[1], out=ratios, where=drawn[1] > 0)
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest").tolist()
    return Ratio(score, other, score / other, low, high, *about)
