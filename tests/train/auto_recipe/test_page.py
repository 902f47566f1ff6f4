"""docs/recipes.md says what the rules make of the evidence."""

from pathlib import Path

import pytest

from lrk.train.auto_recipe.evidence import read_evidence
from lrk.train.auto_recipe.page import page, rules_part

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"


def test_page_and_evidence_agree():
    written = PAGE.read_text(encoding="utf-8")
    assert written.startswith(rules_part(read_evidence())), "run `python -m lrk.train.auto_recipe`"
    assert "## Five configurations" in written


@pytest.mark.slow
def test_page_and_plans_agree():
    assert PAGE.read_text(encoding="utf-8") == page(read_evidence())


def test_each_rule_stands_with_its_rows(evidence):
    text = rules_part(evidence())
    assert "| Which sampler of positions? | PoSE |" in text
    assert "| Which sampler of positions? | CREAM |" in rules_part(
        evidence(methods={"CREAM": (99.0, 1.0)})
    )
    assert "| proof/quotes/full length/1024 | " in text
