"""Figures: parts of speech (as Figure 4 of LongRecipe) and the leading token types."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrk.analysis.counts import Counts
from lrk.analysis.token_types import TokenTypes
from lrk.picture import GREY, ink, new_picture

SHOWN_TYPES = 24


def draw_parts_of_speech(parts: Counts, tags: Sequence[str], title: str, picture: Path) -> None:
    """A PNG: share of each part of speech among all tokens and among the top, and its lift."""
    present = [index for index in np.argsort(-parts.top_share) if parts.count[index]]
    places = np.arange(len(present))
    share, top_share = 100 * parts.share[present], 100 * parts.top_share[present]
    with new_picture(picture, 6, 1.7 + 0.36 * len(present), title) as figure:
        axes = figure.subplots()
        axes.barh(places + 0.2, share, 0.36, color=GREY, label="of all tokens")
        axes.barh(places - 0.2, top_share, 0.36, color="C0", label="of the top tokens")
        for place, all_of, top in zip(places, share, top_share, strict=True):
            lift = top / all_of
            axes.annotate(
                f"\u00d7 {lift:.2f}",
                (max(all_of, top), place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color="C0" if lift > 1 else GREY,
                weight="bold" if lift > 1 else "normal",
            )
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.set_yticks(places, [tags[index] for index in present])
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="share in per cent; \u00d7 the second over the first (lift)")
        figure.legend(loc="outside lower center", ncols=2, handlelength=1, reverse=True)


def draw_token_types(
    types: TokenTypes,
    texts: Sequence[str],
    impactful: NDArray[np.int64],
    min_lift: float,
    title: str,
    picture: Path,
) -> None:
    """A PNG: of the leading types the bound that decides, beside `min_lift`, and the lift."""
    shown = slice(0, SHOWN_TYPES)
    lift, low = types.lift[shown], types.lift_low[shown]
    labels = [
        f"{texts[token]!r} ({count:,})"
        for token, count in zip(types.token_ids[shown], types.count[shown], strict=True)
    ]
    is_impactful = np.isin(types.token_ids[shown], impactful)
    places = np.arange(len(labels))
    with new_picture(picture, 6, 2.4 + 0.27 * len(labels), title) as figure:
        axes = figure.subplots()
        for chosen, colour, label in (
            (is_impactful, "C0", "impactful (dot: lift; bar: at least so much, at 95 %)"),
            (~is_impactful, GREY, "not: at least too little, or too rare"),
        ):
            axes.barh(places[chosen], low[chosen], 0.7, color=colour, label=label)
            axes.hlines(places[chosen], low[chosen], lift[chosen], color=colour, linewidth=1.5)
            axes.plot(lift[chosen], places[chosen], "o", color=colour)
        axes.axvline(min_lift, color=ink(), linestyle="--", linewidth=1.2)
        axes.annotate(
            f"min_lift {min_lift:g}",
            (min_lift, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
        )
        axes.invert_yaxis()
        axes.set_yticks(places, labels)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0)
        axes.set(xlabel="lift: share of the top over share of all")
        figure.legend(loc="outside lower left", ncols=1, handlelength=1)
