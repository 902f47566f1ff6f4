"""PNG files, in which a name is text: that of a model's folder may hold anything."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lrk.atomic import atomic_file


def new_figure(width: float, height: float) -> Figure:
    """In inches; it needs no display, and no window remembers it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, picture: Path, dpi: int = 120) -> None:
    """Write the PNG. Dollar signs begin no formula, and bytes that are no text become `?`."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(text.get_text().encode(errors="replace").decode())
    # Labels of ticks are made while it is drawn.
    with rc_context({"text.parse_math": False}), atomic_file(picture) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
