"""Pictures are drawn whatever the names in them are."""

from pathlib import Path

import pytest
from PIL import Image

from lrk.eval.heatmap import draw_heat_map, draw_loss_by_position
from lrk.picture import new_figure, save_figure

NAMES = ["a$x^$b", "$", r"\frac{1}$ $", "{}%s_^", "模型", "two\nlines", "a" * 300, "caf\udce9"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_a_name_is_text(name, tmp_path):
    draw_heat_map({(8, 50.0): 1.0}, [50.0], name, tmp_path / "heat.png")
    draw_loss_by_position({8: [(1.0, 2.0)]}, name, tmp_path / "loss.png")
    figure = new_figure(4, 3)
    axes = figure.add_subplot()
    rows = [name if name.isprintable() else "a row", "other"]
    axes.barh(rows, [1.0, 2.0], label=name)  # labels of ticks are made while it is drawn
    axes.text(1.0, 0.0, name)
    figure.suptitle(name)
    figure.legend(loc="outside lower center")
    save_figure(figure, tmp_path / "bars.png")
    for picture in ("heat.png", "loss.png", "bars.png"):
        assert _drawn(tmp_path / picture)


def _drawn(picture: Path) -> bool:
    with Image.open(picture) as image:
        return len(set(image.convert("L").tobytes())) > 2
