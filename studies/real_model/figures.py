"""The pictures of a study: loss by position, and what is found by length and depth."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lrk.atomic import atomic_file
from lrk.eval.heatmap import BIN_MIDDLES, binned
from lrk.eval.tasks import GRID
from studies.real_model.measurement import LOSSES, PASSKEY
from studies.real_model.results import Record, cells

ByPlace = dict[tuple[int, float], float]
"""Score in per cent by length in tokens and depth in per cent."""


def draw(results: Record, folder: Path) -> list[Path]:
    """PNG files: `real_model_loss`, `real_model_needles` and `real_model_passkeys`.

    Returns:
        Those that there are results for.
    """
    measured = dict.fromkeys(record["model"] for record in results["measurements"])
    curves = {name: curve for name in measured if (curve := _curve(results, name))}
    drawn = []
    if curves:
        drawn.append(folder / "real_model_loss.png")
        _draw_curves(curves, results["settings"]["window"], drawn[-1])
    pictures: dict[str, Callable[[Record, str], ByPlace]] = {
        "needles": _needles,
        "passkeys": _passkeys,
    }
    for what, places in pictures.items():
        panels = {name: found for name in measured if (found := places(results, name))}
        if panels:
            drawn.append(folder / f"real_model_{what}.png")
            _draw_panels(panels, drawn[-1])
    return drawn


def _curve(results: Record, name: str) -> list[tuple[float, float]]:
    """Loss over position in the longest text that was read, mean of the seeds."""
    found = [cell for cell in cells(results, name) if cell["task"] == LOSSES]
    longest = max((cell["length"] for cell in found), default=0)
    bins = [cell["bins"] for cell in found if cell["length"] == longest]
    return [
        ((same[0]["start"] + same[0]["stop"]) / 2, statistics.fmean(b["loss"] for b in same))
        for same in zip(*bins, strict=True)
    ]


def _needles(results: Record, name: str) -> ByPlace:
    scores: dict[tuple[int, float], list[float]] = {}
    for cell in cells(results, name):
        if cell["task"] == GRID:
            at = (cell["length"], cell["depth"])
            scores.setdefault(at, []).extend(100 * trial["score"] for trial in cell["trials"])
    return {at: statistics.fmean(found) for at, found in scores.items()}


def _passkeys(results: Record, name: str) -> ByPlace:
    """They lie anywhere: depth in ten intervals."""
    trials: dict[int, list[Record]] = {}
    for cell in cells(results, name):
        if cell["task"] == PASSKEY:
            trials.setdefault(cell["length"], []).extend(cell["trials"])
    return {
        (length, middle): score
        for length, found in trials.items()
        for middle, score in binned(
            [trial["depth"] for trial in found], [100 * trial["score"] for trial in found]
        ).items()
    }


def _draw_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], window: int, path: Path
) -> None:
    figure = _figure(9, 5.5)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        style = ("-", "--", ":")[number // 10 % 3]
        positions, losses = zip(*points, strict=True)
        axes.plot(positions, losses, style, marker=".", color=f"C{number % 10}", label=name)
    axes.axvline(window, color="0.5", linestyle=":", label="window as published")
    axes.set(xlabel="position in tokens", ylabel="held-out loss in nats a token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def _draw_panels(panels: Mapping[str, ByPlace], path: Path) -> None:
    """A heat map a model: lengths from left to right, depths from top to bottom."""
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    lengths = sorted({length for places in panels.values() for length, _ in places})
    depths = sorted({depth for places in panels.values() for _, depth in places})
    depths = [*BIN_MIDDLES] if set(depths) <= set(BIN_MIDDLES) else depths
    figure = _figure(3.6 * across + 1, 3.0 * down + 0.6)
    axes = np.atleast_1d(figure.subplots(down, across, squeeze=False)).flatten()
    image = None
    for panel, (name, places) in zip(axes, panels.items(), strict=False):
        image = _draw_panel(panel, name, places, lengths, depths)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    assert image is not None
    figure.colorbar(image, ax=list(axes), label="per cent found")
    _save(figure, path)


def _draw_panel(
    axes: Axes, name: str, places: ByPlace, lengths: Sequence[int], depths: Sequence[float]
) -> AxesImage:
    grid = np.full((len(depths), len(lengths)), np.nan)
    for (length, depth), score in places.items():
        grid[depths.index(depth), lengths.index(length)] = score
    axes.set_facecolor("0.85")
    image = axes.imshow(grid, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    axes.set_title(name, fontsize=8)
    axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], fontsize=7, rotation=45)
    axes.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths], fontsize=7)
    for row, column in np.argwhere(~np.isnan(grid)):
        axes.text(column, row, f"{grid[row, column]:.0f}", ha="center", va="center", fontsize=6)
    return image


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
