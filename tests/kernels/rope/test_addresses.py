"""Offsets of 2^31 elements and more. The interpreter wraps 32-bit integers as a GPU does."""

import pytest
import torch

from lrk.kernels.rope import phase_increments, rope_reference, rope_triton
from lrk.kernels.rope.kernel import launch_arguments, rope_kernel

FAR = 2**31 + 64  # elements
SHAPE = (3, 3, 3, 4)  # (B, H, S, D)


def spread(axis: int, device: torch.device) -> torch.Tensor:
    """A view of SHAPE whose last index along `axis` is FAR elements from its first.

    It starts 2^31 elements into its memory, so that an offset wrapped to a negative number reads
    and writes memory of ours, and the values tell. Memory never touched costs nothing.
    """
    strides = [400, 100, 20, 1]
    strides[axis] = FAR // (SHAPE[axis] - 1)
    memory = torch.empty(2**31 + FAR + 2000, dtype=torch.bfloat16, device=device)
    return memory.as_strided(SHAPE, strides, 2**31)


@pytest.mark.parametrize("rotary_dim", [4, 2])
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("axis", range(4), ids=["batch", "head", "token", "dimension"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_beyond_two_to_the_31(interleaved, axis, side, rotary_dim, device):
    torch.manual_seed(axis)
    values = torch.randn(SHAPE).bfloat16().to(device)
    q, q_out = values, torch.empty_like(values)
    if side == "input":
        q = spread(axis, device).copy_(values)
    else:
        q_out = spread(axis, device)
    position_ids = torch.arange(9, device=device).view(3, 3)
    inv_freq = torch.tensor([1.0, 0.1], dtype=torch.float64, device=device)[: rotary_dim // 2]
    # As q and as k, each with its own strides.
    for order in (1, -1):
        pair, out = (q, values)[::order], (q_out, torch.empty_like(values))[::order]
        grid, arguments = launch_arguments(
            *pair, *out, position_ids, phase_increments(inv_freq), 1.0, interleaved, False
        )
        q_out.zero_()
        rope_kernel[grid](**arguments)
        truth, _ = rope_reference(values, values, position_ids, inv_freq, 1.0, interleaved)
        torch.testing.assert_close(q_out, truth, rtol=2**-7, atol=1e-3)


def test_positions_far_apart(device):
    memory = torch.empty(FAR + 3, dtype=torch.int32, device=device)
    position_ids = memory.as_strided((3, 3), (FAR // 2, 1))
    position_ids.copy_(torch.arange(9, device=device).view(3, 3))
    q = torch.randn(SHAPE, device=device)
    inv_freq = torch.tensor([1.0, 0.1], dtype=torch.float64, device=device)
    ours, truth = (f(q, q, position_ids, inv_freq)[0] for f in (rope_triton, rope_reference))
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-6)
