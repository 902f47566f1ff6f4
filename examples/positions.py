"""What each position sampler does, as a picture: `python -m examples.positions`.

Left: where the tokens of some samples lie in the target. Right: how many pairs of tokens are at
each distance, beside a text of full length; what is at 0 is never trained.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Generator, Tensor

from lrk import positions
from lrk.picture import faint, light_and_dark, new_picture

PICTURE = Path(__file__).parents[1] / "docs" / "positions.png"
TARGET, TOKENS, SENTENCE = 4096, 1228, 24
SAMPLES_SHOWN, SAMPLES_COUNTED, BINS = 12, 400, 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what each position sampler does.")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the PNG to write, for light")
    samples = {method: draw(method) for method in positions.SAMPLERS}
    for picture in light_and_dark(parser.parse_args().output):
        draw_samplers(samples, picture)
        print(picture)


def draw_samplers(samples: Mapping[str, list[Tensor]], picture: Path) -> None:
    """A row for each sampler: some of its samples, and its distances."""
    with new_picture(picture, 7, 10, dpi=120) as figure:
        rows = figure.subplots(len(samples), 2, sharex="col", width_ratios=(2, 1), squeeze=False)
        for (left, right), (method, drawn) in zip(rows, samples.items(), strict=True):
            draw_places(left, drawn[:SAMPLES_SHOWN])
            draw_distances(right, drawn)
            left.set_title(method, weight="bold")
        left.set(xlabel=f"position in a target of {TARGET:,}, for {TOKENS:,} tokens")
        right.set(xlabel="distance of two tokens")
        rows[0, 1].set_title("pairs; grey: full length")
        for axes in (left, right):
            axes.set_xticks((0, TARGET // 2, TARGET), ["0", f"{TARGET // 2:,}", f"{TARGET:,}"])
            axes.get_xticklabels()[-1].set_horizontalalignment("right")


def draw(method: str) -> list[Tensor]:
    """Positions of samples whose sentences have some 24 tokens."""
    generator = Generator().manual_seed(0)
    samples = []
    for _ in range(SAMPLES_COUNTED):
        ends = torch.randperm(TOKENS - 1, generator=generator)[: TOKENS // SENTENCE].sort().values
        lengths = torch.cat([ends + 1, torch.tensor([TOKENS])]).diff(prepend=torch.tensor([0]))
        samples.append(positions.SAMPLERS[method](lengths, TARGET, generator))
    return samples


def draw_places(axes: Axes, samples: list[Tensor]) -> None:
    """One line for each sample, in colour where it has tokens."""
    occupied = torch.zeros(len(samples), TARGET)
    for row, sample in zip(occupied, samples, strict=True):
        row[sample] = 1
    occupied = occupied.repeat_interleave(5, 0)
    occupied[4::5] = 0  # a gap between lines
    occupied = occupied.view(len(occupied), -1, 2).mean(-1)  # as fine as the picture
    colour = torch.tensor(to_rgb("C0")).expand(*occupied.shape, 3)
    image = torch.cat([colour, occupied[..., None]], -1).numpy()
    axes.imshow(image, aspect="auto", extent=(0, TARGET, 0, 1), interpolation="antialiased")
    axes.set(yticks=[])


def draw_distances(axes: Axes, samples: list[Tensor]) -> None:
    """Mean number of pairs at a distance, by bins of it."""
    centres = (torch.arange(BINS) + 0.5) * TARGET / BINS
    full = pairs_by_distance(torch.arange(TARGET))
    pairs = torch.stack([pairs_by_distance(sample) for sample in samples]).mean(0)
    axes.fill_between(centres, full.view(BINS, -1).mean(1), color=faint(), linewidth=0)
    axes.plot(centres, pairs.view(BINS, -1).mean(1))
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlim=(0, TARGET), ylim=(0, 2 * TARGET))
    axes.set_yticks((0, 1, 1000), ["0", "1", "1,000"])


def pairs_by_distance(sample: Tensor) -> Tensor:
    """(TARGET,) how often each distance occurs: the autocorrelation of the occupied places."""
    occupied = torch.zeros(2 * TARGET, dtype=torch.float64)
    occupied[sample] = 1
    spectrum = torch.fft.rfft(occupied)
    return torch.fft.irfft(spectrum.abs().square())[:TARGET].round()


if __name__ == "__main__":
    main()
