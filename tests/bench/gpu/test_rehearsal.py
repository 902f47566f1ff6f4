"""Every line of a run, on a CPU: what a GPU would run differs in sizes and in `torch.cuda` only."""

import json
import subprocess
import sys
from pathlib import Path

from bench.gpu.docs import Card, page
from bench.gpu.docs import main as make_docs
from bench.gpu.results import PARTS, results_in
from bench.gpu.row import BACKWARD, BOTH, FORWARD
from bench.gpu.stand_in import CARD
from bench.gpu.table import MAX_LINES, table

ROOT = Path(__file__).parents[3]


def test_rehearsal(tmp_path):
    out = tmp_path / "results"
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", "--seed", "0", "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    results = results_in(out)
    assert run.returncode == 0, table(results) + run.stderr[-3000:]
    assert list(results.rows) == list(PARTS)
    for part, header in results.headers.items():
        assert header["card"] == CARD, part
        assert header["seed"] == 0
        assert header["packages"]["torch"]

    rows = results.rows
    assert not [row for some in rows.values() for row in some if row.ok is False]
    # What is left out is somebody else's, and for a reason.
    left = {row.provider for some in rows.values() for row in some if row.note and row.ok is None}
    assert left
    assert not any(provider.startswith("lrk") for provider in left)

    operations = {"attention", "rope", "linear_cross_entropy", "linear_kl"}
    assert {row.op for row in rows["correct"]} == operations
    assert all(row.ok for row in rows["correct"])
    variants = {row.variant for row in rows["correct"]}
    assert {"second stream", "CUDA graph", "torch.compile"} < variants
    timed = {
        (row.op, row.direction)
        for row in rows["kernels"]
        if row.provider == "lrk" and row.milliseconds is not None and row.ok
    }
    ways = (FORWARD, BACKWARD, BOTH)
    assert timed == {
        *(("attention", each) for each in ways),
        *(("rope", each) for each in ways),
        ("decoding", FORWARD),
        ("linear_cross_entropy", FORWARD),
        ("linear_cross_entropy", BOTH),
    }
    assert all(row.share for row in rows["kernels"] if row.milliseconds)
    assert all(row.planned_mib for row in rows["step"] if row.op == "step")
    assert abs(sum(row.share for row in rows["step"] if row.op == "kernel") - 1) < 1e-6

    text = (out / "table.txt").read_text()
    assert text == table(results) + "\n"
    assert len(text.splitlines()) <= MAX_LINES
    assert "A REHEARSAL" in text
    assert text in run.stdout
    assert "## card" in page([Card("card", results)], {})

    # Its figures get into no page.
    assert make_docs(["--results", str(tmp_path), "--docs", str(tmp_path)]) == 2
    assert not (tmp_path / "gpu_results.md").exists()


def test_the_page_is_made_from_the_results(tmp_path):
    assert make_docs(["--results", str(ROOT / "bench/results"), "--docs", str(tmp_path)]) == 0
    made = (tmp_path / "gpu_results.md").read_text()
    assert made == (ROOT / "docs/gpu_results.md").read_text()


def test_results_in_the_repository_are_complete():
    for path in (ROOT / "bench/results").glob("*/*.json"):
        content = json.loads(path.read_text())
        if "rows" in content:
            assert content["commit"], path
            assert not content["rehearsal"], path
