"""What the kernels compile to on every GPU they are meant for."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


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
        assert row["stack_bytes"] == row["spill_bytes"] == 0, row
        assert row["narrow_accesses_in_loops"] == 0, row
        # Label, its logit and its bias, three numbers that pull, and three statistics.
        assert row["narrow_accesses"] <= 9, row
