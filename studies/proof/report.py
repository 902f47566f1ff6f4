"""The study's table, verdict and picture."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrk.picture import heat_map, new_picture
from studies.proof.methods import FULL, LONGRECIPE, POSE, SHORT, TARGET, WINDOW

DRAWN = {
    "nothing": "untouched",
    "short training": f"{WINDOW} tokens\na sample",
    "LongRecipe, stock transformers": "LongRecipe in stock\ntransformers",
    "LongRecipe": "LongRecipe in lrk",
    LONGRECIPE: "LongRecipe\n+ temperature",
    POSE: "PoSE + reach\n+ temperature",
    FULL: f"{TARGET:,} tokens\na sample",
}
"""Methods that the picture shows, from nothing to everything, and how it names them."""

# Student's t at 97.5 %, by the number of seeds.
_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def grouped(rows: list[dict]) -> dict[str, list[dict]]:
    """Runs by method, in the order of the rows."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        groups[row["method"]].append(row)
    return groups


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the 95 % confidence interval of the mean (Student)."""
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), _T[len(values)] * spread


def p_value(differences: list[float]) -> float:
    """Two-sided, of paired runs: Student's t test that the mean of their differences is 0.

    It takes differences for normal, as `interval` does, and is below 0.05 where that leaves out 0.
    """
    mean, half = interval(differences)
    if half == 0:
        return float(mean == 0)
    t = mean / half * _T[len(differences)]
    return 1 - _inside(abs(t), len(differences) - 1)


def _inside(t: float, freedom: int) -> float:
    """Probability that Student's variable is within -t and t (Abramowitz and Stegun 26.7.3, 4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for n in range(2 + odd, freedom - 1, 2):
        term *= (n - 1) / n * cosine**2
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))


def holm(p_values: list[float]) -> list[float]:
    """Corrected for their number by Holm's step-down method (1979), in the order given.

    The k-th smallest of n is multiplied by n - k + 1, and is no smaller than those before it.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda n: p_values[n])
    corrected = [0.0] * count
    largest = 0.0
    for rank, n in enumerate(order):
        largest = max(largest, min(1.0, (count - rank) * p_values[n]))
        corrected[n] = largest
    return corrected


class Difference(NamedTuple):
    """Of two methods in one task at one length, 0 to 1.

    Attributes:
        mean, half: of the differences seed by seed, with half their 95 % interval (Student): the
            same samples train and are asked of both.
        p: of `p_value`.
        p_corrected: by `holm`, for all that `differences` was asked for.
    """

    mean: float
    half: float
    p: float
    p_corrected: float


Compared = tuple[str, str, str, str]
"""A method, the one that is subtracted, the task, the length."""


def differences(
    rows: list[dict], pairs: Sequence[tuple[str, str]], lengths: Sequence[str]
) -> dict[Compared, Difference]:
    """The first method of each pair minus the second, by task and length."""
    groups = grouped(rows)
    found = {}
    for pair, task, length in itertools.product(pairs, rows[0]["accuracy"], lengths):
        one, other = (
            {row["seed"]: row["accuracy"][task][length] for row in groups[name]} for name in pair
        )
        apart = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
        found[(*pair, task, length)] = (*interval(apart), p_value(apart))
    corrected = holm([p for _, _, p in found.values()])
    return {
        key: Difference(*each, p) for (key, each), p in zip(found.items(), corrected, strict=True)
    }


def table(rows: list[dict], task: str) -> str:
    """Markdown: share of the tokens asked for that are right, over seeds with a 95 % interval."""
    lengths = list(rows[0]["accuracy"][task])
    lines = [
        "| method | " + " | ".join(f"{int(n):,}" for n in lengths) + " | tokens | FLOP |",
        "|---" * (len(lengths) + 3) + "|",
    ]
    for method, group in grouped(rows).items():
        cells = []
        for length in lengths:
            mean, half = interval([row["accuracy"][task][length] for row in group])
            cells.append(f"{100 * mean:.1f} ± {100 * half:.1f}")
        cells += [f"{group[0]['training_tokens']:,}", f"{group[0]['training_flop']:.2g}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(found: Mapping[Compared, Difference]) -> str:
    """Markdown: the difference of each pair, by task and length, with the corrected p."""
    columns = list(dict.fromkeys(key[2:] for key in found))
    heads = [f"{task}, {int(length):,} | p" for task, length in columns]
    lines = [
        "| points | " + " | ".join(heads) + " |",
        "|---" * (1 + 2 * len(columns)) + "|",
    ]
    for method, of in dict.fromkeys(key[:2] for key in found):
        cells = []
        for column in columns:
            one = found[(method, of, *column)]
            p = "< 0.001" if one.p_corrected < 0.001 else f"{one.p_corrected:.3f}"
            cells += [f"{100 * one.mean:+.1f} ± {100 * one.half:.1f}", p]
        lines.append(f"| {method} minus {of} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def search_table(content: dict) -> str:
    """Markdown: of a file of factors, the loss of quotes that it was not found with, by plan."""
    found = content["search"]
    lines = [
        "| plan, no training | held-out loss at 1,024 | with the attention factor of longrope |",
        "|---" * 3 + "|",
    ]
    lines += [
        f"| {plan} | {loss['own']:.3f} | {loss['same']:.3f} |"
        for plan, loss in content["held_out_loss"].items()
    ]
    return "\n".join(lines) + (
        f"\n\n{found['trials']} candidates in {content['cpu_seconds']:.0f} CPU seconds: loss "
        f"{found['initial_loss']:.3f} at first, {found['loss']:.3f} at last; critical dimension "
        f"{found['critical_dimension']} (theoretical: {found['theoretical_critical_dimension']})"
    )


def draw(rows: list[dict], picture: Path) -> None:
    """A heat map of each task: methods from top to bottom, lengths from left to right, means.

    Args:
        rows: of the methods of `DRAWN` those that are there are drawn, and of others none.
    """
    groups = grouped(rows)
    methods = [name for name in DRAWN if name in groups]
    tasks = list(rows[0]["accuracy"])
    title = (
        f"Samples of {100 * SHORT / TARGET:.0f} % of the length come near full length in quotes, "
        "less near in variables"
    )
    with new_picture(picture, 6, 2.2 + 0.4 * len(methods), title) as figure:
        panels = figure.subplots(1, len(tasks), sharey=True)
        for axes, task in zip(panels, tasks, strict=True):
            lengths = list(rows[0]["accuracy"][task])
            means = [
                [statistics.mean(row["accuracy"][task][n] for row in groups[name]) for n in lengths]
                for name in methods
            ]
            named = [f"{int(length):,}" for length in lengths]
            heat_map(axes, 100 * np.array(means), [DRAWN[name] for name in methods], named)
            axes.tick_params(axis="x", labelsize=9)
            axes.set_title(f"{task}, per cent right")
        figure.supxlabel(f"tokens read (old window {WINDOW}, trained for {TARGET:,})", size=10.5)
