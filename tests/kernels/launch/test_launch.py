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
    """4 warps, or 8 for attention, a row of logits beyond registers, and a pair of rows."""
    for launch in launches:
        attends = launch["kernel"].startswith("_attention")
        wide = "beyond" in launch["case"] or launch["kernel"] == "_pair_kernel"
        allowed = {128, 256} if attends else {256 if wide else 128}
        assert launch["threads"] in allowed, launch


def test_decoding_compiles_once(report):
    """Though a dynamic cache has other lengths and strides for each token."""
    assert report["compiled"] == {"_attention_split": 1, "_attention_merge": 1}


def test_grids_of_decoding(launches):
    """A program for each key head and split of the keys, and one for each query and its head."""
    for launch in launches:
        if launch["kernel"] in ("_attention_split", "_attention_merge"):
            call = launch["case"].removeprefix("decoding, ")
            rows, queries = {"offsets": 2}.get(call, 1), {"8 tokens": 8}.get(call, 1)
            heads = 4 * queries if launch["kernel"] == "_attention_merge" else 2 * 8  # splits
            assert launch["grid"] == [heads * rows, 1, 1], launch


def test_grids(launches):
    """One axis: a whole number of tiles for each head of each row, or of each tile of a table."""
    one_tile = {"1 token", "7 tokens", "65,536 rows", "65,536 heads"}
    rows = {"3 rows": 3, "offsets": 2, "a document a row": 2, "65,536 rows": 65_536}
    for launch in launches:
        if launch["kernel"].startswith("_attention") and launch["case"].startswith("attention"):
            call = launch["case"].removeprefix("attention, ")
            heads = {"65,536 heads": 65_536}.get(call, 4)
            if launch["kernel"] == "_attention_key_gradient":
                heads //= 2
            programs, *rest = launch["grid"]
            assert rest == [1, 1], launch
            tiles, remainder = divmod(programs, heads * rows.get(call, 1))
            assert remainder == 0, launch
            assert (tiles == 1) == (call in one_tile), launch


def test_tensor_maps(launches):
    """Two a kernel, where the GPU has them and the tensors of the loop allow it."""
    for launch in launches:
        case, of_keys = launch["case"], launch["kernel"] == "_attention_key_gradient"
        expanded = of_keys and case.endswith("expanded gradient")
        by_pointers = case.endswith("head dim 20") or expanded
        described = launch["arch"] in WITH_TENSOR_MAPS and not by_pointers
        if launch["kernel"] == "_attention_split":
            described &= not case.endswith(("float32", "window and softcap", "window in positions"))
        attends = launch["kernel"].startswith("_attention")
        attends &= launch["kernel"] != "_attention_merge"
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
