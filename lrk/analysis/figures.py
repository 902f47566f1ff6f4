"""Figures: parts of speech (as Figure 4 of LongRecipe) and the leading token types."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrk.analysis.counts import Counts
from lrk.analysis.token_types import TokenTypes
from lrk.picture import new_figure, save_figure

SHOWN_TYPES = 24


def draw_parts_of_speech(parts: Counts, tags: Sequence[str], title: str, picture: Path) -> None:
    """A PNG: share of each part of speech among all tokens and among the top, and its lift."""
    present = [index for index in np.argsort(-parts.top_share) if parts.count[index]]
    places = np.arange(len(present))
    figure = new_figure(10, 4.5)
    left, right = figure.subplots(1, 2)
    left.bar(places - 0.2, parts.share[present], 0.4, color="0.75", label="all tokens")
    left.bar(places + 0.2, parts.top_share[present], 0.4, label="top tokens")
    left.set(ylabel="share")
    left.legend()
    lift = parts.top_share[present] / parts.share[present]
    right.bar(places, lift, color=["C0" if value > 1 else "0.75" for value in lift])
    right.axhline(1, color="0.3", linewidth=1)
    right.set(ylabel="lift: share of the top over share of all")
    for axes in (left, right):
        axes.set_xticks(places, [tags[index] for index in present], rotation=60)
    figure.suptitle(title)
    save_figure(figure, picture)


def draw_token_types(
    types: TokenTypes,
    texts: Sequence[str],
    impactful: NDArray[np.int64],
    title: str,
    picture: Path,
) -> None:
    """A PNG: lift of the leading types and the bound that decides; the impactful ones in blue."""
    shown = slice(0, SHOWN_TYPES)
    lift, low = types.lift[shown], types.lift_low[shown]
    labels = [
        f"{texts[token]!r} ({count:,})"
        for token, count in zip(types.token_ids[shown], types.count[shown], strict=True)
    ]
    places = np.arange(len(labels))[::-1]
    figure = new_figure(7, 1.5 + 0.25 * len(labels))
    axes = figure.subplots()
    axes.barh(
        places, lift, color=np.where(np.isin(types.token_ids[shown], impactful), "C0", "0.75")
    )
    axes.errorbar(
        lift, places, xerr=[lift - low, np.zeros_like(lift)], fmt="none", ecolor="0.3", capsize=2
    )
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_yticks(places, labels, fontsize=8)
    axes.set(xlabel="lift, and its lower bound at 95 %", title=title)
    save_figure(figure, picture)
