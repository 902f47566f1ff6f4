"""The pictures of a study: loss by position, and what is found by length and depth."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lrk.eval.heatmap import BIN_MIDDLES, binned
from lrk.eval.tasks import GRID
from lrk.picture import GREY, faint, heat_map, label_lines, light_and_dark, new_picture
from studies.real_model.measurement import LOSSES, PASSKEY
from studies.real_model.models import UNTOUCHED
from studies.real_model.results import Record, cells

ByPlace = dict[tuple[int, float], float]
"""Score in per cent by length in tokens and depth in per cent."""


def draw(results: Record, folder: Path) -> list[Path]:
    """PNG files: `real_model_loss`, `real_model_needles` and `real_model_passkeys`.

    Returns:
        Those that there are results for; the same for dark pages lie beside them.
    """
    measured = dict.fromkeys(record["model"] for record in results["measurements"])
    curves = {name: curve for name in measured if (curve := _curve(results, name))}
    drawn = []
    if curves:
        drawn.append(folder / "real_model_loss.png")
        for picture in light_and_dark(drawn[-1]):
            _draw_curves(curves, results["settings"]["window"], picture)
    pictures: dict[str, Callable[[Record, str], ByPlace]] = {
        "needles": _needles,
        "passkeys": _passkeys,
    }
    for what, places in pictures.items():
        panels = {name: found for name in measured if (found := places(results, name))}
        if panels:
            drawn.append(folder / f"real_model_{what}.png")
            for picture in light_and_dark(drawn[-1]):
                _draw_panels(panels, f"{what.capitalize()} found, per cent", picture)
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
    curves: Mapping[str, Sequence[tuple[float, float]]], window: int, picture: Path
) -> None:
    others = iter(("C0", "C2", "C3", "C4", "C5"))
    with new_picture(picture, 6, 4.4, "Held-out loss by position, nats a token") as figure:
        axes = figure.add_subplot()
        axes.axvline(window, color=GREY, linestyle=":")
        axes.annotate(
            "window as published",
            (window, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="left",
            color=GREY,
        )
        for name, points in curves.items():
            colour = "C1" if name == UNTOUCHED.name else next(others, GREY)
            axes.plot(*zip(*points, strict=True), color=colour, label=name)
        axes.set(xlabel="position in tokens")
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="y", color=faint())
        label_lines(axes)


def _draw_panels(panels: Mapping[str, ByPlace], title: str, picture: Path) -> None:
    """A heat map a model: lengths from left to right, depths from top to bottom."""
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    lengths = sorted({length for places in panels.values() for length, _ in places})
    depths = sorted({depth for places in panels.values() for _, depth in places})
    depths = [*BIN_MIDDLES] if set(depths) <= set(BIN_MIDDLES) else depths
    with new_picture(picture, 6, 1.4 + (0.8 + 0.26 * len(depths)) * down, title) as figure:
        axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
        for panel, (name, places) in zip(axes, panels.items(), strict=False):
            grid = np.full((len(depths), len(lengths)), np.nan)
            for (length, depth), score in places.items():
                grid[depths.index(depth), lengths.index(length)] = score
            heat_map(panel, grid, [f"{depth:g} %" for depth in depths], _in_1024(lengths))
            panel.set_title(name)
        for panel in axes[len(panels) :]:
            panel.set_axis_off()
        for panel in axes[len(panels) - across : len(panels)]:  # Nothing is below them.
            panel.tick_params(labelbottom=True)
        figure.supxlabel(
            "length in 1,024 tokens; from top to bottom: depth of the needle", size=10.5
        )


def _in_1024(lengths: Sequence[int]) -> list[str]:
    return [f"{length / 1024:.3g}" for length in lengths]


def draw_before_and_after(rows: Sequence[Record], window: int, picture: Path) -> None:
    """A line a model, from its mean loss below the window to that beyond it, and its passkeys.

    Args:
        rows: `model`, `below`, `beyond` in nats a token, `passkeys` found of three.
    """
    title = f"Untouched, the model breaks beyond {window:,} tokens; extended, it does not"
    with new_picture(picture, 6, 1.9 + 0.36 * len(rows), title) as figure:
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            colour = "C1" if row["model"] == UNTOUCHED.name else "C0"
            axes.plot((row["below"], row["beyond"]), (place, place), color=colour)
            axes.plot(row["below"], place, "o", color=GREY)
            axes.plot(row["beyond"], place, "o", color=colour, markersize=8)
            axes.annotate(
                f"{row['beyond']:.2f}; {row['passkeys']} of 3 passkeys",
                (max(row["below"], row["beyond"]), place),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                color=colour,
            )
        axes.invert_yaxis()
        axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=f"loss in nats a token; grey: below {window:,}, in colour: beyond")
