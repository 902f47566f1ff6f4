"""What the kernels of few queries on many keys compile to, in Triton 3.6 to 3.9."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrk.kernels.attention import split_kv
from lrk.kernels.attention.tiles import Tiles

ROOT = Path(__file__).parents[3]
SMALLEST_SHARED_MEMORY = 99 * 1024  # of sm_86, sm_89 and sm_120
UNDER_WAY = 40_000
"""Bytes that an H100 needs for each multiprocessor to read at its full bandwidth: 3.35 TB/s times
some 1.5 microseconds, by Little's law."""


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """In a process whose kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.attention.compile_split_kv_rows"],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def splitting(rows) -> list[dict]:
    return [row for row in rows if row["kernel"] == "_attention_split"]


def test_every_case_has_its_two_kernels(rows):
    cases = {row["case"] for row in rows}
    assert len(cases) == 15
    assert {(row["case"], row["kernel"]) for row in rows} == {
        (case, kernel) for case in cases for kernel in ("_attention_split", "_attention_merge")
    }


def test_no_stack(rows):
    assert [row for row in rows if row["stack_bytes"] or row["spill_bytes"]] == []


def test_shared_memory_fits_the_smallest(rows):
    for row in rows:
        limit = 64 * 1024 if row["case"].startswith("gfx") else SMALLEST_SHARED_MEMORY
        assert row["shared_bytes"] <= limit, row


def test_tensor_cores(splitting):
    for row in splitting:
        arch, _, _, dtype, _ = row["case"].split()
        # In full precision, which only AMD's tensor cores compute.
        assert bool(row["tensor_core"]) == (dtype != "float32" or arch == "gfx942"), row


def test_tensor_memory_accelerator(splitting):
    """The tiles of a window are all masked."""
    for row in splitting:
        arch, _, _, dtype, variant = row["case"].split()
        described = arch in ("sm_90", "sm_100") and dtype != "float32" and variant != "window"
        assert bool(row["tma"]) == described, row


def test_enough_bytes_are_under_way(splitting):
    """Where the tiles in use are one a program, the others of its pipeline."""
    for row in splitting:
        arch, head_dim, queries, dtype, _ = row["case"].split()
        if (arch, queries, dtype) == ("sm_90", "4", "bfloat16"):
            programs = min(at_once(row), row["blocks_per_sm"])
            tile = row["tile"][1] * int(head_dim) * 2
            tiles_under_way = 2 * (row["num_stages"] - 1) - 1
            assert programs * tiles_under_way * tile >= UNDER_WAY, row


def test_no_wave_of_programs_is_left_half_empty(splitting):
    """All run at once, or in whole waves of one a multiprocessor."""
    for row in splitting:
        _, head_dim, _, dtype, _ = row["case"].split()
        if dtype != "float32" and head_dim != "256":
            fitting = row["blocks_per_sm"]
            assert fitting >= at_once(row) or fitting == 1, row


def at_once(row: dict) -> int:
    config = Tiles(*row["tile"], row["num_warps"], row["num_stages"])
    return split_kv.programs_at_once(row["case"].split()[0], config)
