"""Pictures are drawn whatever the names in them are, for light pages and for dark ones."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from PIL import Image

from lrk.eval.heatmap import draw_heat_map, draw_loss_by_position, draw_scores
from lrk.picture import GREY, heat_map, ink, label_lines, light_and_dark, new_picture

NAMES = ["a$x^$b", "$", r"\frac{1}$ $", "{}%s_^", "模型", "two\nlines", "a" * 300, "caf\udce9"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_a_name_is_text(name, tmp_path):
    draw_heat_map({(8, 50.0): 1.0}, [50.0], name, tmp_path / "heat.png")
    draw_scores({8: [100.0, 0.0]}, name, tmp_path / "scores.png")
    draw_loss_by_position({8: [(1.0, 2.0)]}, name, tmp_path / "loss.png")
    with new_picture(tmp_path / "bars.png", 4, 3, name) as figure:
        axes = figure.add_subplot()
        rows = [name if name.isprintable() else "a row", "other"]
        axes.barh(rows, [1.0, 2.0], label=name)  # labels of ticks are made while it is drawn
        axes.plot([1.0, 2.0], [0.0, 0.0], label=name)
        axes.text(1.0, 0.0, name)
        figure.legend(loc="outside lower center")
        label_lines(axes)
    for picture in ("heat.png", "scores.png", "loss.png", "bars.png"):
        assert _drawn(tmp_path / picture)


def _drawn(picture: Path) -> bool:
    with Image.open(picture) as image:
        return len(set(image.convert("L").tobytes())) > 2


def test_a_name_that_ends_in_dark_is_for_dark_pages(tmp_path):
    inks, corners, sizes = [], [], []
    settings = dict(rcParams)
    for picture in light_and_dark(tmp_path / "x.png"):
        with new_picture(picture, 2, 1, "a title") as figure:
            figure.add_subplot()
            inks.append(sum(to_rgb(ink())))
        with Image.open(picture) as image:
            corners.append(image.convert("RGBA").getpixel((image.width - 1, image.height - 1)))
            sizes.append(image.size)
    assert [path.name for path in tmp_path.iterdir() if path.stem == "x-dark"] == ["x-dark.png"]
    assert inks[0] < 1 < 2 < inks[1]
    assert corners[0] == (255, 255, 255, 255)
    assert corners[1][3] == 0, "the page shows through"
    assert sizes[0] == sizes[1] == (320, 160)
    assert dict(rcParams) == settings, "the style is that of the picture alone"


def test_what_fails_leaves_no_picture(tmp_path):
    with pytest.raises(ValueError, match="while drawing"), new_picture(tmp_path / "x.png", 2, 1):
        raise ValueError("while drawing")
    assert list(tmp_path.iterdir()) == []


def test_a_long_title_is_broken_into_lines(tmp_path, drawn_texts):
    with new_picture(tmp_path / "x.png", 3, 2, "word " * 12):
        pass
    assert drawn_texts[0].count("\n") >= 1
    assert drawn_texts[0].split() == ["word"] * 12


def test_labels_stand_at_the_ends_and_apart(tmp_path):
    with new_picture(tmp_path / "x.png", 5, 3) as figure:
        axes = figure.add_subplot()
        ends = {"lowest": 0.0, "a": 5.0, "b": 5.01, "c": 5.02, "highest": 10.0}
        for name, end in ends.items():
            axes.plot([0, 1], [3, end], color=GREY if name == "a" else "C0", label=name)
        axes.plot([0, 1], [7, 7])  # without a label
        label_lines(axes)
        figure.draw_without_rendering()
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        assert list(boxes) == list(ends)
        middles = [box.y0 + box.height / 2 for box in boxes.values()]
        assert middles == sorted(middles)
        for one, other in zip([*boxes.values()][:-1], [*boxes.values()][1:], strict=True):
            assert not one.overlaps(other)
        assert all(box.x1 <= figure.bbox.x1 for box in boxes.values()), "there is room"
        assert axes.texts[1].get_color() == GREY
        alone = axes.transData.transform((1, 10.0))[1]
        assert boxes["highest"].y0 < alone < boxes["highest"].y1


def test_figures_in_cells_can_be_read(tmp_path):
    values = np.arange(0.0, 101.0, 10)
    with new_picture(tmp_path / "x.png", 8, 2) as figure:
        axes = figure.add_subplot()
        heat_map(axes, np.array([[*values, np.nan]]), ["row"], [str(n) for n in range(12)])
        image = axes.get_images()[0]
        assert [text.get_text() for text in axes.texts] == [f"{value:.0f}" for value in values]
        for text, value in zip(axes.texts, values, strict=True):
            lights = sorted(_light(colour) for colour in (text.get_color(), image.to_rgba(value)))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) > 4, "the contrast of WCAG 2, all but AA"


def _light(colour: object) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in to_rgb(colour)
    ]
    return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
