"""Every picture of the documentation is made of what is committed, for light pages and for dark."""

import re
from pathlib import Path

import pytest
from PIL import Image

from examples import demo, positions
from studies import pictures
from studies.proof import report as proof
from studies.proof.task import TASKS
from studies.real_text import differences

DOCS = Path(__file__).parents[2] / "docs"
SAID = {
    "idea": "Skipped positions in lrk",
    "positions": "longrecipe_released",
    "proof": "PoSE + reach\n+ temperature",
    "real_model": "4.54; 0 of 3 passkeys",
    "demo": "theta rescaled",
    "impactful_tokens": "PROPN",
    "real_text": "window alone",
}
"""A text of each but memory, which takes a minute to trace; tests/plan/test_chart.py has that."""


@pytest.mark.parametrize("name", SAID)
def test_pictures_are_made_again(name, tmp_path, drawn_texts, monkeypatch):
    monkeypatch.setattr(positions, "SAMPLES_COUNTED", 12)
    monkeypatch.setattr(differences, "RESAMPLES", 100)
    pictures.main([name, "--docs", str(tmp_path)])
    assert drawn_texts.count(SAID[name]) in (2, 4), "light and dark, in one panel or two"
    with (
        Image.open(tmp_path / f"{name}.png") as light,
        Image.open(tmp_path / f"{name}-dark.png") as dark,
    ):
        assert light.size == dark.size


def test_all_of_the_documentation_are_known():
    found = {path.stem for path in DOCS.glob("*.png")}
    assert found == {end for name in pictures.PICTURES for end in (name, f"{name}-dark")}
    assert pictures.PICTURES.keys() == SAID.keys() | {"memory"}
    for path in DOCS.glob("*.png"):
        assert path.stat().st_size < 100_000


def test_cells_of_the_proof_are_its_means(tmp_path, drawn_texts):
    rows = [
        {"method": "nothing", "seed": seed, "accuracy": {task: {"128": share} for task in TASKS}}
        for seed, share in enumerate((0.25, 0.75))
    ]
    proof.draw(rows, tmp_path / "proof.png")
    assert {"untouched", "50", "128"} < set(drawn_texts)


def test_demo_without_a_length(tmp_path, drawn_texts):
    demo.draw({"control": {1024: 2.0, 131_072: 3.0}}, tmp_path / "demo.png")
    assert {"control", "8,192"} < set(drawn_texts)


def test_a_name_of_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        pictures.main(["proofs"])
    assert re.search("'proofs' is none of idea, positions", capsys.readouterr().err)
