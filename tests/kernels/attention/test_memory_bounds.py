"""No argument, right or wrong, takes the kernels outside of their tensors.

On a GPU wrong boundaries cannot be refused without waiting for them, so they may give any numbers;
but reads and writes must stay inside.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.launch.libcuda import ROOT, compiler

SOURCE = Path(__file__).with_name("guard_pages.c")


@pytest.fixture(params=["at the end", "at the beginning"])
def guarded(request, tmp_path):
    """A function that runs cases among guard pages, and returns the last that began."""
    if sys.platform != "linux" or compiler() is None:
        pytest.skip("guard pages need Linux and a C compiler")
    library = tmp_path / "guard_pages.so"
    options = ["-shared", "-fPIC", "-Wall", "-Werror"]
    options += ["-DAT_END"] if request.param == "at the end" else []
    subprocess.run([compiler(), *options, str(SOURCE), "-o", str(library), "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(library), "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "tests.kernels.attention.guarded", *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        *_, last = ["nothing", *result.stdout.splitlines()]
        return last if result.returncode == 0 else f"{last}: {result.returncode} {result.stderr}"

    return run


def test_known_cases(guarded):
    assert guarded() == "done"


@pytest.mark.slow
def test_random_cases(guarded):
    assert guarded("--seeds", "160") == "done"
