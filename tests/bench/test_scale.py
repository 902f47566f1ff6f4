"""The table of docs/scale.md is what `bench.scale` prints."""

from pathlib import Path

import pytest
from transformers.utils import is_accelerate_available

from bench.scale import HEADER, TARGETS, row, settings_for, sharing, trained_length
from lrk.plan import load_config, plan

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    not is_accelerate_available("1.12.0"),
    reason="older ones shard the head with the embeddings, and share no samples",
)
def test_a_row_of_the_page():
    settings = settings_for(trained_length(TARGETS[0], 0.3), 512, 4)
    found = plan("llama-3-8b", load_config("llama-3-8b"), settings)
    of_8b = PAGE.split("**llama-3-8b**")[1].split("**llama-3.1-70b**")[0]
    assert HEADER in of_8b
    assert row(TARGETS[0], found) in of_8b.splitlines()


def test_what_never_fits_is_no_row():
    assert sharing("llama-3.1-70b", 131_072, 2) is None
