"""The evidence file: read as it is written, found by its fields, refused in a sentence."""

import json

import pytest

from lrk.train.auto_recipe.evidence import Comparison, read_evidence
from lrk.train.auto_recipe.rules import NOT_MEASURED, findings


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_rows_are_found_by_their_fields(tmp_path, content):
    evidence = read_evidence(write(tmp_path / "e.json", content()))
    row = evidence.row("proof", "variables", "PoSE + reach", 16)
    assert (row.length, row.mean, row.runs) == (2048, 70.0, 5)
    assert evidence.named(row.name) is row
    assert evidence.find("proof", "variables", "PoSE + reach", 4) is None
    assert evidence.tasks("proof") == ["quotes", "variables"]
    assert (evidence.reach, evidence.temperature_power) == (2.0, 1.0)
    with pytest.raises(ValueError, match=r"no row of 'PoSE' for task 'songs' .* 8 times"):
        evidence.row("proof", "songs", "PoSE", 8)


def test_a_comparison_is_found_from_both_sides(evidence):
    ahead = evidence().compared("proof", "quotes", "full length", "PoSE + reach + temperature", 8)
    behind = evidence().compared("proof", "quotes", "PoSE + reach + temperature", "full length", 8)
    assert (ahead.difference, ahead.low, ahead.high) == (1.0, 0.5, 1.5)
    assert (behind.difference, behind.low, behind.high) == (-1.0, -1.5, -0.5)
    assert behind.name == ahead.name
    assert evidence().compared("proof", "quotes", "PoSE", "E2", 8) is None


def test_less_is_better_in_nats():
    figures = {"length": 8, "low": 0.1, "high": 0.3, "p": 0.1, "p_corrected": 0.2}
    sides = {"better": "a", "worse": "b", "difference": 0.2}
    assert Comparison("x", task="text", **sides, **figures).gain == -0.2
    assert Comparison("x", task="quotes", **sides, **figures).gain == 0.2


def damaged(content, change):
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("rows"), "has no 'rows'"),
        (lambda c: c.pop("settings"), "has no 'settings'"),
        (lambda c: c["rows"]["proof/quotes/PoSE/1024"].pop("mean"), "'proof/.*' has no mean"),
        (lambda c: c["rows"]["proof/quotes/PoSE/1024"].update(mean="high"), "mean is 'high', of"),
        (
            lambda c: c["rows"].update(again=c["rows"]["proof/quotes/PoSE/1024"]),
            "rows of one thing: proof/quotes/PoSE/1024 and again",
        ),
    ],
)
def test_what_is_damaged_is_named(tmp_path, content, change, sentence):
    path = write(tmp_path / "e.json", damaged(content(), change))
    with pytest.raises(ValueError, match=sentence):
        read_evidence(path)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist; `python -m studies.evidence` writes"):
        read_evidence(tmp_path / "none.json")
    (tmp_path / "e.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged: Expecting"):
        read_evidence(tmp_path / "e.json")


def test_the_evidence_of_the_package_has_what_the_rules_rest_on():
    evidence = read_evidence()
    found = findings(evidence)
    for each in found:
        assert each.evidence or each.reason.startswith(NOT_MEASURED), each.question
        for name in each.evidence:
            evidence.named(name)
