"""What a method is better or worse by than another, with intervals over documents and seeds."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000

Statistic = Callable[["Runs"], NDArray[np.float64]]


class Runs(NamedTuple):
    """All runs of a method: (seeds, documents, buckets), short_loss and asked without one of them.

    Attributes:
        asked: (documents, buckets), tokens of names that are asked for.
    """

    loss: NDArray[np.float64]
    short_loss: NDArray[np.float64]
    right: NDArray[np.float64]
    name_loss: NDArray[np.float64]
    first_right: NDArray[np.float64]
    asked: NDArray[np.float64]


class Difference(NamedTuple):
    """Its mean over documents and seeds, the 95 % interval of a paired bootstrap, and the share of
    the resamples, of both sides, that are not on the side of the mean."""

    mean: float
    low: float
    high: float
    p: float


def runs_by_method(content: dict) -> dict[str, Runs]:
    """Of a file of results, in the order of its rows; see `studies.real_text.study`."""
    groups: dict[str, list[dict]] = {}
    for row in content["rows"]:
        groups.setdefault(row["method"], []).append(row)
    names = ("loss", "short_loss", "right", "name_loss", "first_right")
    asked = np.array(content["asked"], dtype=float)
    return {
        method: Runs(*(np.array([row[name] for row in rows], dtype=float) for name in names), asked)
        for method, rows in groups.items()
    }


def loss_at(first: int, last: int) -> Statistic:
    """(seeds, documents, 2): nats and tokens over buckets first to last, each as heavy."""

    def statistic(runs: Runs) -> NDArray[np.float64]:
        nats = runs.loss[..., first : last + 1].mean(-1)
        return np.stack([nats, np.ones_like(nats)], -1)

    return statistic


def short_loss(runs: Runs) -> NDArray[np.float64]:
    """(seeds, documents, 2): nats and how many."""
    return np.stack([runs.short_loss, np.ones_like(runs.short_loss)], -1)


def share_right(first: int, last: int) -> Statistic:
    """(seeds, documents, 2): tokens of names that are right, and asked for, at some distances."""

    def statistic(runs: Runs) -> NDArray[np.float64]:
        right = runs.right[..., first : last + 1].sum(-1)
        asked = runs.asked[..., first : last + 1].sum(-1)
        return np.stack([right, np.broadcast_to(asked, right.shape)], -1)

    return statistic


def by_seed(statistic: Statistic, runs: Runs) -> list[float]:
    """The mean over documents, for each seed; 0 where nothing is asked for."""
    sums = statistic(runs).sum(1)
    return (sums[:, 0] / np.maximum(sums[:, 1], 1)).tolist()


def difference(statistic: Statistic, one: Runs, other: Runs) -> Difference:
    """`one` minus `other`: the same seeds and documents of both are drawn anew, together.

    What trains nothing has one run, which stands beside every seed of the other.
    """
    first, second = statistic(one), statistic(other)
    seeds = min((len(each) for each in (first, second) if len(each) > 1), default=1)
    pair = [np.broadcast_to(each[:seeds], (seeds, *each.shape[1:])) for each in (first, second)]
    generator = np.random.default_rng(0)
    documents = pair[0].shape[1]
    rows = _weights(generator, seeds)
    columns = _weights(generator, documents)
    # (seeds, documents, 2) for all resamples at once: how often each is drawn is its weight.
    drawn = _minus(*(np.einsum("rs,rd,sdk->rk", rows, columns, each) for each in pair))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    mean = float(_minus(*(each.sum((0, 1)) for each in pair)))
    other_side = ((drawn <= 0) if mean > 0 else (drawn >= 0)).mean()
    return Difference(mean, low, high, float(min(1.0, max(2 * other_side, 1 / RESAMPLES))))


def _weights(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(RESAMPLES, count): how often each of so many is drawn."""
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)


def _minus(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (..., 2), sums and counts: the difference of the means."""
    first, second = (each[..., 0] / np.maximum(each[..., 1], 1) for each in (one, other))
    return first - second
