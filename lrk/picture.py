"""PNG files in one style, for light pages and for dark ones.

A picture says one thing, in its title; what is not the point is grey, and lines are labelled at
their ends. The colours are those of Okabe and Ito (2008) and the map is cividis (Nunez et al.,
2018), which colour-blind readers can tell apart. `x.png` has dark ink on white; a name that ends in
`-dark`, as in `x-dark.png`, has light ink on no ground. Whatever a text holds is drawn as it is: a
dollar sign begins no formula.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrk.atomic import atomic_file

if TYPE_CHECKING:  # matplotlib takes a while to import, and most commands draw nothing.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#8c8c8c"
"""Of what is not the point, on light pages and on dark ones."""

_DARK = "-dark"
_BLUE, _SKY, _VERMILLION, _GREEN = "#0072B2", "#56B4E9", "#D55E00", "#009E73"
_PURPLE, _ORANGE, _YELLOW = "#CC79A7", "#E69F00", "#F0E442"
_LIGHT_COLOURS = (_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _SKY)
_DARK_COLOURS = (_SKY, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _YELLOW)
_MAP = "cividis"
_TITLE_SIZE, _LABEL_SIZE = 12.5, 10.5  # points; a picture of 6 inches is 432 wide
_AS_FAR = 0.18  # luminance of what white and black stand out from alike
_CHARACTER = 0.6  # width of a bold one, mean, over the size of the font


def light_and_dark(picture: Path) -> tuple[Path, Path]:
    """`x.png`, and `x-dark.png` beside it."""
    return picture, picture.with_stem(picture.stem + _DARK)


@contextmanager
def new_picture(
    picture: Path, width: float, height: float, title: str = "", dpi: int = 160
) -> "Iterator[Figure]":
    """A figure to draw on, which is the PNG after the block; no display is needed.

    Args:
        picture: the file, for a dark page if its name ends in `-dark`.
        width, height: in inches. Six are for one column of text or a telephone.
        title: what the picture says; broken into lines that fit.

    Raises:
        SaveError: if it cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    dark = picture.stem.endswith(_DARK)
    with rc_context(_style(dark)):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        if title:
            columns = int(width * 72 / (_CHARACTER * _TITLE_SIZE))
            lines = textwrap.fill(title, columns, max_lines=3, placeholder=" ...")
            figure.suptitle(lines, x=0.01, ha="left", size=_TITLE_SIZE, weight="bold")
        yield figure
        _keep_text(figure)
        drawn = BytesIO()
        figure.savefig(drawn, dpi=dpi, format="png")
        with Image.open(drawn) as image, atomic_file(picture) as temporary:
            pixels = image if dark else image.convert("RGB")
            # At most 256 colours: a third of the bytes.
            pixels.quantize().save(temporary, format="png", optimize=True)


def _style(dark: bool) -> dict[Any, Any]:
    from cycler import cycler

    ink, line, faint = (
        ("#e6edf3", "#9198a1", "#3d444d") if dark else ("#1f2328", "#6e7781", "#d8dee4")
    )
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": line,
        "axes.facecolor": "none",
        "axes.labelcolor": ink,
        "axes.labelsize": _LABEL_SIZE,
        "axes.prop_cycle": cycler(color=_DARK_COLOURS if dark else _LIGHT_COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": ink,
        "axes.titlelocation": "left",
        "axes.titlesize": _LABEL_SIZE,
        "figure.facecolor": "none" if dark else "white",
        "font.size": _LABEL_SIZE,
        "grid.color": faint,
        "image.cmap": _MAP,
        "legend.frameon": False,
        "legend.fontsize": _LABEL_SIZE,
        "lines.linewidth": 2,
        "lines.markersize": 5,
        "savefig.facecolor": "auto",
        "text.color": ink,
        "text.parse_math": False,
        "xtick.color": line,
        "xtick.labelcolor": ink,
        "xtick.labelsize": _LABEL_SIZE,
        "ytick.color": line,
        "ytick.labelcolor": ink,
        "ytick.labelsize": _LABEL_SIZE,
    }


def ink() -> str:
    """The colour of text in the picture that is drawn."""
    from matplotlib import rcParams

    return str(rcParams["text.color"])


def faint() -> str:
    """The colour of what is hardly there: grids, and cells without a value."""
    from matplotlib import rcParams

    return str(rcParams["grid.color"])


def label_lines(axes: "Axes") -> None:
    """Write the label of each line at its end, in its colour; call it when all is drawn."""
    figure = axes.figure.figure  # also of matplotlib 3.9
    assert figure is not None
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    labels = []
    for line in lines:
        x, y = (np.asarray(values, float)[-1] for values in line.get_data())
        labels.append(
            axes.annotate(
                str(line.get_label()),
                (x, y),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=line.get_color(),
            )
        )
    _keep_text(figure)
    figure.draw_without_rendering()  # With room for the labels: places are known only then.
    points = 72 / figure.dpi
    places = [float(axes.transData.transform(label.xy)[1]) * points for label in labels]
    for label, place, apart in zip(
        labels, places, _spread(places, 1.25 * _LABEL_SIZE), strict=True
    ):
        label.set_position((8, apart - place))


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """The nearest places, in the same order, that are `gap` apart."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    blocks: list[list[int]] = []  # of indices that touch, each around its mean
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and _middle(blocks[-1], places) - _middle(blocks[-2], places) < (
            gap * (len(blocks[-1]) + len(blocks[-2])) / 2
        ):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    spread = [0.0] * len(places)
    for block in blocks:
        first = _middle(block, places) - gap * (len(block) - 1) / 2
        for number, index in enumerate(block):
            spread[index] = first + gap * number
    return spread


def _middle(block: Sequence[int], places: Sequence[float]) -> float:
    return sum(places[index] for index in block) / len(block)


def heat_map(
    axes: "Axes", grid: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Cells from 0 (dark) to 100 (bright), each with its figure in ink that stands out from it.

    Args:
        grid: (R, C) per cent; NaN where there is none.
        rows, columns: their names.
    """
    axes.set_facecolor(faint())
    image = axes.imshow(grid, vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, column in np.argwhere(~np.isnan(grid)):
        value = grid[row, column]
        axes.text(
            column,
            row,
            f"{value:.0f}",
            ha="center",
            va="center",
            color="white" if _luminance(image.to_rgba(value)) < _AS_FAR else "black",
        )


def _luminance(colour: Any) -> float:
    """Relative luminance of sRGB values from 0 to 1, as WCAG 2 defines it."""
    values = np.asarray(colour, float)[..., :3]
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _keep_text(figure: "Figure") -> None:
    """Bytes that are no text become `?`: matplotlib cannot draw them."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(text.get_text().encode(errors="replace").decode())
