"""The arithmetic of bounds, against clocks worked out by hand."""

import pytest

from bench.bounds import clocks, table

FORWARD = {
    "kernel": "_attention_forward", "provider": "lrk", "model": "llama-3-8b", "arch": "sm_90",
    "head_dim": 128, "tile": "128x64", "num_warps": 8, "registers": 138, "stack_bytes": 0,
    "blocks_per_sm": 1, "loop_instructions": 348, "loop_exp2": 32,
}  # fmt: skip


def test_a_trip_of_the_forward_loop():
    # 4 x 128 x 64 x 128 FLOP at 4,096; 348 instructions of 8 warps at 4; 32 x 256 exp2 at 16.
    assert clocks(FORWARD) == {"tensor": 1024, "issue": 696, "exp2": 512}


@pytest.mark.parametrize(("instructions", "bound"), [(348, "100%"), (1024, "50%")])
def test_the_longest_unit_decides(instructions, bound):
    assert table([FORWARD | {"loop_instructions": instructions}]).endswith(f"| {bound} |")


def test_kernels_without_a_tile_are_left_out():
    assert len(table([FORWARD | {"kernel": "_document_tiles"}]).splitlines()) == 2
