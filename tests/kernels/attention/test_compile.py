"""What the kernels compile to on every GPU they are meant for: a regression is slow, not wrong.

Run with Triton 3.6.0, 3.7.1, 3.8.0 and 3.9.0, of which each allots registers in its own way.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KERNELS = {"_attention_forward", "_attention_query_gradient", "_attention_key_gradient"}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """In a process whose kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_rows.py"))],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def attending(rows) -> list[dict]:
    return [row for row in rows if row["kernel"] in KERNELS]


def test_every_case_has_its_three_kernels(attending):
    cases = {row["case"] for row in attending}
    assert len(cases) >= 18
    assert {(row["case"], row["kernel"]) for row in attending} == {
        (case, kernel) for case in cases for kernel in KERNELS
    }


def test_no_stack(rows):
    assert [row for row in rows if row["stack_bytes"] or row["spill_bytes"]] == []


def test_tensor_cores(attending):
    for row in attending:
        arch, head_dim, dtype, _ = row["case"].split()
        # A specialisation that Triton breaks compiles to a stub of 4 registers that traps.
        assert min(row["registers"], row["instructions"] // 8) > 64, row
        if arch != "sm_100":  # where kernels trap if they cannot get tensor memory
            assert row["traps"] == 0, row
        if dtype == "float32":  # in full precision, which only AMD's tensor cores compute
            assert bool(row["tensor_core"]) == (arch == "gfx942"), row
        elif arch == "sm_90" and int(head_dim) <= 128:
            assert row["hgmma"] >= 8, row
        else:
            assert row["tensor_core"] >= 16, row


def test_tensor_memory_accelerator(attending):
    for row in attending:
        arch = row["case"].split()[0]
        assert bool(row["tma"]) == (arch in ("sm_90", "sm_100")), row
