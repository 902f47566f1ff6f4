"""What the kernels compile to on every GPU they are meant for.

Run with Triton 3.6.0, 3.7.1, 3.8.0 and 3.9.0: each release allots registers in its own way.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import triton

ROOT = Path(__file__).parents[3]
RELEASE = ".".join(triton.__version__.split(".")[:2])

STACK_BYTES = {
    # Kept over the first loop: one register is stored before it and loaded behind it.
    ("3.6", "sm_100 32000 torch.bfloat16 label_smoothing gradient=True"): 8,
}
"""Of the cases that use any, by Triton's release."""


def test_no_spills_and_wide_accesses():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_rows.py"))],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])
    assert len(rows) > 30
    for row in rows:
        allowed = STACK_BYTES.get((RELEASE, row["case"]), 0)
        assert max(row["stack_bytes"], row["spill_bytes"]) <= allowed, row
        assert row["narrow_accesses_in_loops"] == 0, row
        # Label, its logit and its bias, three numbers that pull, and three statistics; the entropy
        # and what pulls at it.
        assert row["narrow_accesses"] <= 9 + 2 * ("entropy" in row["case"]), row
