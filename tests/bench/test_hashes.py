"""A change that does not mean to change a kernel leaves the code that Triton makes of it alone.

Renew a file with the command of `COMMAND`, run with the Triton that it is named by, and say in the
commit what changed and why.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from bench.ptx import code_hash

ROOT = Path(__file__).parents[2]
COMMAND = "-m bench.compile_report --hashes --arch sm_90 --model llama-3-8b smollm2-135m"
KEPT = Path(__file__).with_name("hashes") / f"triton-{triton.__version__}.txt"


def test_kernels_are_what_they_were():
    if not KEPT.exists():
        pytest.skip(f"hashes are kept for other releases of Triton than {triton.__version__}")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, *COMMAND.split()],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    kept, now = (set(text.splitlines()) for text in (KEPT.read_text(), result.stdout))
    assert now == kept, (
        f"changed or new: {sorted(now - kept)}, gone: {sorted(kept - now)}. If that is meant: "
        f"python {COMMAND} > {KEPT.relative_to(ROOT)}"
    )


def test_lines_and_comments_do_not_count():
    ptx = """
//
.version 9.4
	.loc	1 108 0                         // kernel.py:108:0
$L__tmp0:
	add.s32 	%r1, %r2, %r3;          // comment
	.section	.debug_abbrev
.b8 1
"""
    moved = ptx.replace("108", "109").replace("tmp0", "tmp7").replace(".b8 1", ".b8 2")
    assert code_hash(moved) == code_hash(ptx)
    assert code_hash(ptx.replace("add.s32", "sub.s32")) != code_hash(ptx)
