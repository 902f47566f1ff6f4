"""What skipped positions are, and what they buy, as a picture: `python -m examples.idea`.

A sample of some tokens stands at ordinary positions, at those that LongRecipe draws for it, and at
these again as stock transformers reads them, where every skip begins a document. In colour is what
its last token attends to.
"""

import argparse
import itertools
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from lrk import positions
from lrk.picture import GREY, faint, ink, light_and_dark, new_picture

PICTURE = Path(__file__).parents[1] / "docs" / "idea.png"
WINDOW, TARGET, TOKENS = 8_192, 131_072, 39_322
SEGMENTS = 12
"""Few, to be seen; LongRecipe's are sentences."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what skipped positions are.")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the PNG to write, for light")
    for picture in light_and_dark(parser.parse_args().output):
        draw(picture)
        print(picture)


def draw(picture: Path) -> None:
    """The sample three times, each above what its last token sees."""
    contiguous, skipped = torch.arange(TOKENS), skipped_positions()
    apart = document_of_the_last(skipped)
    rows = (
        (
            "Ordinary positions",
            contiguous,
            torch.ones_like(apart),
            f"{TOKENS:,} tokens train distances up to {TOKENS - 1:,}",
        ),
        (
            "Skipped positions in lrk",
            skipped,
            torch.ones_like(apart),
            f"as many tokens train distances up to {int(skipped[-1]):,}",
        ),
        (
            "Skipped positions in stock transformers",
            skipped,
            apart,
            f"each skip begins a new document: the last token sees {int(apart.sum()):,}",
        ),
    )
    title = "Skipped positions train a long window on 30 % of its tokens, unless they are misread"
    with new_picture(picture, 6, 4.3, title) as figure:
        panels = figure.subplots(len(rows), 1, sharex=True)
        for axes, (name, sample, is_seen, sentence) in zip(panels, rows, strict=True):
            colour = "C0" if is_seen.all() else "C1"
            draw_strip(axes, sample, is_seen, colour)
            axes.set_title(name, weight="bold", pad=3)
            axes.text(0, -1.6, sentence, color=colour)
        panels[-1].set_xticks(
            (WINDOW, TOKENS, TARGET), [f"{WINDOW:,}\nold window", f"{TOKENS:,}", f"{TARGET:,}"]
        )
        panels[-1].get_xticklabels()[-1].set_horizontalalignment("right")
        panels[-1].set_xlabel("position; in colour: what the last token sees")


def skipped_positions() -> Tensor:
    """(TOKENS,) as LongRecipe draws them, for segments of random lengths."""
    generator = Generator().manual_seed(6)
    ends = torch.randperm(TOKENS - 1, generator=generator)[: SEGMENTS - 1].sort().values + 1
    lengths = torch.cat([ends, torch.tensor([TOKENS])]).diff(prepend=torch.tensor([0]))
    return positions.longrecipe(lengths, TARGET, generator)


def document_of_the_last(sample: Tensor) -> Tensor:
    """(S,) bool: what the last token attends to in stock transformers.

    There a position that is not its neighbour plus one begins a document.
    """
    number = (sample.diff(prepend=sample[:1] - 1) != 1).cumsum(0)
    return number == number[-1]


def draw_strip(axes: Axes, sample: Tensor, is_seen: Tensor, colour: str) -> None:
    """The window, a block for each stretch of positions in a row, and the last token's reach."""
    axes.barh(0, TARGET, 1, color=faint(), alpha=0.5)
    starts = [0, *(torch.nonzero(sample.diff() != 1).flatten() + 1).tolist(), len(sample)]
    for start, stop in itertools.pairwise(starts):
        of_block = colour if is_seen[start] else GREY
        axes.barh(0, stop - start, 1, int(sample[start]), color=of_block, align="center")
    axes.vlines(WINDOW, -0.6, 0.6, color=ink(), linewidth=1.2)
    arrow = {"arrowstyle": "->", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.5}
    ends = [(int(sample[is_seen][end]), -0.8) for end in (0, -1)]
    axes.annotate("", *ends, arrowprops=arrow)
    axes.set(xlim=(0, TARGET), ylim=(-1.7, 0.5), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0)


if __name__ == "__main__":
    main()
