"""Machine code of the kernel, compiled without a GPU: a regression here is slow, not wrong.

Run with Triton 3.6.0, 3.7.1, 3.8.0 and 3.9.0.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Shapes beyond the models': (head dim, rotary dim, dtype, interleaved).
SHAPES = """
import json, sys, torch
from bench.machine_code import read
from bench.offline import compiled_launches
from lrk.kernels.rope import kernel

for head_dim, rotary_dim, dtype, interleaved in json.loads(sys.argv[1]):
    q = torch.empty(1, 4096, 4, head_dim, dtype=getattr(torch, dtype)).transpose(1, 2)
    position_ids = torch.empty(1, 4096, dtype=torch.int32)
    increments = torch.empty(rotary_dim // 2, dtype=torch.int64)
    for arch in ("sm_80", "sm_90"):
        (launch,) = compiled_launches(
            lambda: kernel.rotate(q, q, position_ids, increments, 1.0, interleaved, True), arch
        )
        code = read(launch.compiled, arch)
        assert (code.stack_bytes, code.local_bytes, code.spill_bytes) == (0, 0, 0), (
            head_dim, rotary_dim, dtype, interleaved, code.registers)
        # Of 128 registers a thread, four programs fit on a multiprocessor.
        assert code.registers <= 128, (head_dim, rotary_dim, dtype, interleaved, code.registers)
        assert rotary_dim < 64 or code.min_access_bits() == 128, (head_dim, dtype, interleaved)
"""


def run(*arguments: str) -> None:
    """In a process whose kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> list[dict]:
    file = tmp_path_factory.mktemp("report") / "report.json"
    run("-m", "bench.compile_report", "--op", "rope", "--json", str(file))
    return json.loads(file.read_text())


def test_every_model_and_architecture(report):
    ours = [row for row in report if row["provider"] == "lrk"]
    assert len({(row["model"], row["arch"]) for row in ours}) == len(ours) == 4 * 4
    for row in ours:
        assert row["stack_bytes"] == row["local_bytes"] == row["spill_bytes"] == 0, row
        assert row["min_access_bits"] == 128, row
        # Every element of q and k is loaded once and stored once; positions once.
        assert 1.0 <= row["bytes_over_minimum"] <= 1.02, row
        assert row["blocks_per_sm"] >= 6, row
        if row["arch"].startswith("sm_"):
            assert row["instructions_per_element"] <= 6, row


def test_other_shapes_do_not_spill():
    shapes = [(80, 80, "bfloat16", False), (256, 256, "bfloat16", False),
              (256, 16, "float32", False), (128, 128, "float32", False),
              (128, 64, "bfloat16", True), (128, 128, "float32", True)]  # fmt: skip
    run("-c", SHAPES, json.dumps(shapes))
