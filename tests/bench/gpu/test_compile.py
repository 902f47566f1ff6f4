"""What is compiled before a run is what the run launches: the device waits for no compiler."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.gpu.compile import jobs
from bench.gpu.sizes import REAL
from bench.offline import target_of
from tests.kernels.launch.libcuda import ROOT, build, why_not


def test_a_launch_finds_what_was_compiled(tmp_path):
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    environment = build(tmp_path) | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}

    def run(module: str) -> list[str]:
        command = [sys.executable, "-m", f"tests.bench.gpu.{module}"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    def compiled() -> set[Path]:
        return set((tmp_path / "cache").rglob("*.cubin"))

    (count,) = run("jobs")
    before = compiled()
    kernels = run("launch_compiled")
    # Attention, and back with and without a gradient of the lse, each with a table of documents;
    # RoPE and back; the loss.
    assert Counter(kernels) == {
        "_document_tiles": 5,
        "_attention_forward": 1,
        "_attention_query_gradient": 2,
        "_attention_key_gradient": 2,
        "rope_kernel": 2,
        "_row_kernel": 1,
    }
    assert int(count) == len(kernels)
    assert compiled() == before


def test_jobs_are_those_of_the_other_parts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    found = jobs(REAL)
    lengths = {job.attention.q_length for job in found if job.attention}
    assert {701, 39_322, 131_072, 8192, 1, 7} <= lengths
    assert {128_256, 49_152} <= {job.vocab for job in found}
    assert sum(job.candidate is not None for job in found) >= 34


def test_targets():
    assert target_of("sm_89").arch == 89
    assert target_of("sm_120").arch == 120
    assert target_of("gfx942").backend == "hip"
