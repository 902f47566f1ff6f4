"""Every launcher down to the driver: what a launch on a GPU would be told, without one.

The interpreter runs no launcher and compiling packs no arguments. Here both are Triton's own, over
a stand-in for libcuda.so.1 that refuses what the real one would refuse.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernels.launch.libcuda import ROOT, build, why_not

WITH_TENSOR_MAPS = ("sm_90", "sm_100")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.launch.launches"],
        env=build(tmp_path_factory.mktemp("driver")),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def launches(report) -> list[dict[str, Any]]:
    """Each launch, with the case and architecture that it is of."""
    return [
        {"case": row["case"], "arch": row["arch"], **launch}
        for row in report["launched"]
        for launch in row["launches"]
    ]


@pytest.fixture(scope="module")
def refused(report) -> dict[str, dict[str, Any]]:
    return {row["case"]: row for row in report["refused"]}


def faults(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the launches of each case, in words."""
    for row in rows:
        launched = [launch["kernel"] for launch in row["launches"]]
        if row["error"] is not None:
            yield f"{row['arch']}, {row['case']}: {row['error']}"
        elif launched != row["expected"]:
            yield f"{row['arch']}, {row['case']}: launched {launched}"


def test_every_call_launches_its_kernels(report):
    assert list(faults(report["launched"])) == []


def test_every_kernel_is_launched_here(launches):
    assert {launch["kernel"] for launch in launches} == set(_launched_in_the_sources())


def _launched_in_the_sources() -> Iterator[str]:
    """Names that are indexed by a grid and called, of functions that Triton compiles."""
    nodes = [
        node
        for path in (ROOT / "kernels").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    compiled = {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(each) for each in node.decorator_list)
    }
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            name = ast.unparse(node.func.value)
            if name in compiled:
                yield name


def test_threads(launches):
    """4 warps, or 8 for attention and for a row of logits that is beyond registers."""
    for launch in launches:
        attends = launch["kernel"].startswith("_attention")
        allowed = {128, 256} if attends else {256 if "beyond" in launch["case"] else 128}
        assert launch["threads"] in allowed, launch


def test_grids(launches):
    """(tiles, heads, rows) of attention; under a table of tiles each tile names its row."""
    one_tile = {"1 token", "7 tokens", "key lengths"}
    for launch in launches:
        if launch["kernel"].startswith("_attention"):
            call = launch["case"].removeprefix("attention, ")
            heads = 2 if launch["kernel"] == "_attention_key_gradient" else 4
            tiles, *rest = launch["grid"]
            assert rest == [heads, {"3 rows": 3, "offsets": 2}.get(call, 1)], launch
            assert (tiles == 1) == (call in one_tile), launch


def test_tensor_maps(launches):
    """Two a kernel, where the GPU has them and the tensors of the loop allow it."""
    for launch in launches:
        case, of_keys = launch["case"], launch["kernel"] == "_attention_key_gradient"
        by_pointers = case.endswith("head dim 20") or (
            of_keys and ("documents" in case or case.endswith("expanded gradient"))
        )
        described = launch["arch"] in WITH_TENSOR_MAPS and not by_pointers
        attends = launch["kernel"].startswith("_attention")
        assert launch["tensor_maps"] == (2 if attends and described else 0), launch


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("copy, grid y", "the grid (1, 65536, 1) is not in"),
        ("copy, grid z", "the grid (1, 1, 65536) is not in"),
        ("copy, address", "the tensor is not at a multiple of 16 bytes"),
        ("copy, stride", "a stride of 136 bytes is not a multiple of 16"),
        ("copy, shared memory", "Hardware limit: 101376"),  # Triton asked the driver
        (
            "copy, shared memory unseen",
            "131080 bytes of shared memory exceed the function's 101376",
        ),
        ("attention, rows", "_attention_forward: the grid (1, 4, 65536) is not in"),
        ("attention, heads", "_attention_forward: the grid (1, 65536, 1) is not in"),
    ],
)
def test_what_no_driver_launches_is_a_fault(refused, case, reason):
    assert list(faults([refused["copy"]])) == []
    (fault,) = faults([refused[case]])
    assert reason in fault
    assert refused[case]["launches"] == []


def test_a_missing_launch_is_a_fault(report):
    row = report["launched"][0]
    assert list(faults([row])) == []
    (fault,) = faults([row | {"launches": row["launches"][:-1]}])
    assert fault.startswith("sm_90, attention, causal: launched ['_attention_forward', ")
