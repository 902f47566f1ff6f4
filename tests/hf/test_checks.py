"""The checks of positions and padding as operations: what a compiler is told of them is true."""

import pytest
import torch

import lrk.hf  # noqa: F401

MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
POSITIONS = torch.tensor([[0, 7, 8, 30]])
BOUNDARIES = torch.tensor([0, 4, 8], dtype=torch.int32)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("boundaries", [None, BOUNDARIES])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("backend", "window"), [("lrk", None), ("lrk_fa2", 31)])
def test_opcheck_of_positions(mask, boundaries, dtype, backend, window):
    arguments = (POSITIONS.to(dtype), 2, backend, mask, boundaries, boundaries, window, 4)
    torch.library.opcheck(torch.ops.lrk.checked_positions.default, arguments)


def test_opcheck_of_padding():
    torch.library.opcheck(torch.ops.lrk.real_span.default, (MASK,))
    assert torch.ops.lrk.real_span(MASK).tolist() == [[2, 0], [2, 3]]
