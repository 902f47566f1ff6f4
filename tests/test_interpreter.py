"""The interpreter that the kernel tests rely on must itself be right about bfloat16."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _matmul(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    rows = tl.arange(0, N)
    offsets = rows[:, None] * N + rows[None, :]
    product = tl.dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets))
    tl.store(c_ptr + offsets, product.to(tl.bfloat16))


@pytest.mark.parametrize("n", [16, 32])
def test_bfloat16_dot_and_rounding(n, device, poisoned):
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn(n, n, generator=generator).bfloat16().to(device) for _ in range(2))
    c = torch.empty(n, n, dtype=torch.bfloat16, device=device)
    _matmul[(1,)](a, b, c, N=n)
    exact = a.double() @ b.double()
    assert torch.equal(c, exact.bfloat16()) or (c - exact).abs().max() <= exact.abs().max() * 2**-9
    assert (c == exact.bfloat16()).double().mean() > 0.99
