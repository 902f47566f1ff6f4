"""Pictures: the heat map of length and depth, and the loss along a text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lrk.picture import new_figure, save_figure

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
    """A PNG: lengths from left to right, depths from top to bottom, red 0 to green 100.

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
    figure = new_figure(3.5 + 0.7 * len(lengths), 2 + 0.35 * len(depths))
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    image = axes.imshow(grid, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45)
    axes.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths])
    axes.set(xlabel="context length in tokens", ylabel="depth of the needle", title=title)
    for row, column in np.argwhere(~np.isnan(grid)):
        axes.text(column, row, f"{grid[row, column]:.0f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, label="score")
    save_figure(figure, picture)


def draw_loss_by_position(
    curves: Mapping[int, Sequence[tuple[float, float]]], title: str, picture: Path
) -> None:
    """A PNG: loss in nats a token over position, one curve for each length.

    Args:
        curves: points (position, loss) by length in tokens.
    """
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for length, points in sorted(curves.items()):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"{length:,} tokens")
    axes.set(xlabel="position in tokens", ylabel="loss in nats per token", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, picture)
