"""What each position sampler does, as a picture: `python -m examples.positions`.

Left: where the tokens of some samples lie in the target. Right: how many pairs of tokens are at
each distance, beside a text of full length; what is at 0 is never trained.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Generator, Tensor

from lrk import positions

PICTURE = Path(__file__).parents[1] / "docs" / "positions.png"
TARGET, TOKENS, SENTENCE = 4096, 1228, 24
SAMPLES_SHOWN, SAMPLES_COUNTED, BINS = 12, 400, 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what each position sampler does.")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the PNG to write")
    output = parser.parse_args().output
    figure = Figure(figsize=(11, 11), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(
        len(positions.SAMPLERS), 2, sharex="col", width_ratios=(2, 1), squeeze=False
    )
    for (left, right), method in zip(rows, positions.SAMPLERS, strict=True):
        samples = draw(method)
        draw_places(left, samples[:SAMPLES_SHOWN])
        draw_distances(right, samples)
        left.set_title(method, loc="left", fontsize=10)
    left.set(xlabel=f"position in a target of {TARGET:,}, for {TOKENS:,} tokens")
    right.set(xlabel="distance of two tokens")
    rows[0, 1].legend(fontsize=8)
    figure.savefig(output, dpi=90)
    print(output)


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
    """One line for each sample, dark where it has tokens."""
    occupied = torch.zeros(len(samples), TARGET)
    for row, sample in zip(occupied, samples, strict=True):
        row[sample] = 1
    occupied = occupied.repeat_interleave(5, 0)
    occupied[4::5] = 0  # a gap between lines
    axes.imshow(occupied, aspect="auto", cmap="Blues", interpolation="antialiased", vmax=1.2)
    axes.set(yticks=[])


def draw_distances(axes: Axes, samples: list[Tensor]) -> None:
    """Mean number of pairs at a distance, by bins of it."""
    centres = (torch.arange(BINS) + 0.5) * TARGET / BINS
    full = pairs_by_distance(torch.arange(TARGET))
    pairs = torch.stack([pairs_by_distance(sample) for sample in samples]).mean(0)
    axes.fill_between(centres, full.view(BINS, -1).mean(1), color="0.9", label="full length")
    axes.plot(centres, pairs.view(BINS, -1).mean(1), label="sampler")
    axes.set_yscale("symlog", linthresh=1)
    axes.set(ylim=(0, 2 * TARGET), ylabel="pairs")


def pairs_by_distance(sample: Tensor) -> Tensor:
    """(TARGET,) how often each distance occurs: the autocorrelation of the occupied places."""
    occupied = torch.zeros(2 * TARGET, dtype=torch.float64)
    occupied[sample] = 1
    spectrum = torch.fft.rfft(occupied)
    return torch.fft.irfft(spectrum.abs().square())[:TARGET].round()


if __name__ == "__main__":
    main()
