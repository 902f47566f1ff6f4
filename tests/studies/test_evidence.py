"""The evidence that the package carries is what the studies' results say."""

import json

from studies import evidence


def test_the_packaged_evidence_is_that_of_the_results(monkeypatch, tmp_path):
    packaged = json.loads(evidence.FILE.read_text())
    monkeypatch.setattr(evidence, "FILE", tmp_path / "evidence.json")
    evidence.main()
    assert json.loads(evidence.FILE.read_text()) == packaged
