"""Pictures: the heat map of length and depth, the score by length, the loss along a text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lrk.picture import GREY, faint, heat_map, ink, new_picture
from lrk.wilson import wilson_interval

# Intervals of depth for tasks whose needles lie anywhere, named by their middles in per cent.
DEPTH_BINS = 10
BIN_MIDDLES = tuple(100 * (number + 0.5) / DEPTH_BINS for number in range(DEPTH_BINS))


def binned(depths: Sequence[float], scores: Sequence[float]) -> dict[float, float]:
    """Mean score by depth in per cent, in ten intervals that are named by their middle.

    Args:
        depths: shares from 0 to 1, one a trial.
        scores: one a trial.
    """
    bins: dict[float, list[float]] = {}
    for depth, value in zip(depths, scores, strict=True):
        number = min(int(depth * DEPTH_BINS), DEPTH_BINS - 1)
        bins.setdefault(BIN_MIDDLES[number], []).append(value)
    return {depth: sum(values) / len(values) for depth, values in bins.items()}


def draw_heat_map(
    scores: Mapping[tuple[int, float], float], depths: Sequence[float], title: str, picture: Path
) -> None:
    """A PNG: lengths from left to right, depths from top to bottom, dark 0 to bright 100.

    Args:
        scores: from 0 to 100, by length in tokens and depth in per cent. Cells without a score are
            grey.
        depths: rows, in per cent.
    """
    lengths = sorted({length for length, _ in scores})
    depths = sorted(depths)
    grid = np.full((len(depths), len(lengths)), np.nan)
    for (length, depth), value in scores.items():
        grid[depths.index(depth), lengths.index(length)] = value
    width, height = max(5.0, 1.4 + 0.78 * len(lengths)), 1.5 + 0.32 * len(depths)
    with new_picture(picture, width, height, title) as figure:
        axes = figure.add_subplot()
        heat_map(axes, grid, [f"{depth:g} %" for depth in depths], [f"{n:,}" for n in lengths])
        axes.set(xlabel="length in tokens", ylabel="depth of the needle", title="score, 0 to 100")


def draw_scores(scores: Mapping[int, Sequence[float]], title: str, picture: Path) -> None:
    """A PNG: a bar for each length, with its 95 % interval (Wilson) and the number of trials.

    Args:
        scores: of the trials, from 0 to 100, by length in tokens.
    """
    lengths = sorted(scores)
    with new_picture(picture, max(5.0, 1.0 + 0.85 * len(lengths)), 3.4, title) as figure:
        axes = figure.add_subplot()
        for place, length in enumerate(lengths):
            mean, trials = float(np.mean(scores[length])), len(scores[length])
            low, high = wilson_interval(np.array(mean / 100 * trials), np.array(trials))
            axes.bar(place, mean, 0.7, color="C0")
            axes.vlines(place, 100 * low, 100 * high, color=ink())
            axes.text(place, 103, f"{mean:.0f}", ha="center", va="bottom", weight="bold")
        ticks = [f"{length:,}\n{len(scores[length])} asked" for length in lengths]
        axes.set_xticks(range(len(lengths)), ticks)
        axes.set(xlabel="length in tokens", title="score, and its 95 % interval")
        axes.set(ylim=(0, 115), yticks=(0, 50, 100))
        axes.tick_params(axis="x", length=0)


def draw_loss_by_position(
    curves: Mapping[int, Sequence[tuple[float, float]]], title: str, picture: Path
) -> None:
    """A PNG: loss in nats a token over position, one curve for each length, which ends there.

    Args:
        curves: points (position, loss) by length in tokens.
    """
    with new_picture(picture, 6, 4, title) as figure:
        axes = figure.add_subplot()
        longest = max(curves, default=0)
        for length, points in sorted(curves.items()):
            positions, losses = zip(*points, strict=True)
            colour = "C0" if length == longest else GREY
            axes.plot(positions, losses, marker="o", markevery=[-1], color=colour)
        ends = [0, *(length for length in sorted(curves) if length > longest / 8)]
        axes.set_xticks(ends, [f"{end:,}" for end in ends])
        axes.set(
            xlabel="position in tokens",
            title="loss in nats per token; each line ends with its text",
        )
        axes.grid(axis="y", color=faint())
