"""The interpreter that the kernel tests rely on must itself be right about bfloat16."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from lrk.kernels.interpreter import mend_interpreter
from lrk.kernels.target import interpreting

ROOT = Path(__file__).parents[2]


@triton.jit
def _matmul(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    rows = tl.arange(0, N)
    offsets = rows[:, None] * N + rows[None, :]
    product = tl.dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets))
    tl.store(c_ptr + offsets, product.to(tl.bfloat16))


@pytest.fixture(autouse=True)
def mended():
    if interpreting():
        mend_interpreter()


@pytest.mark.parametrize("n", [16, 32])
def test_bfloat16_dot_and_rounding(n, device, poisoned):
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn(n, n, generator=generator).bfloat16().to(device) for _ in range(2))
    c = torch.empty(n, n, dtype=torch.bfloat16, device=device)
    _matmul[(1,)](a, b, c, N=n)
    exact = a.double() @ b.double()
    assert torch.equal(c, exact.bfloat16()) or (c - exact).abs().max() <= exact.abs().max() * 2**-9
    assert (c == exact.bfloat16()).double().mean() > 0.99


@triton.jit
def _count(count_ptr, out_ptr):
    total = 0
    for _ in range(tl.load(count_ptr)):
        total += 2
    tl.store(out_ptr, total)


def test_a_loop_with_a_bound_from_memory(device):
    """Triton 3.6 beside numpy 2.4 stops here."""
    count, out = (torch.tensor([x], device=device) for x in (21, 0))
    _count[(1,)](count, out)
    assert out.item() == 42


def test_kernels_mend_it_by_themselves():
    """As a reader of the README runs them, on CPU tensors in a process of its own."""
    code = (
        "import torch\n"
        "from lrk.kernels.attention import attention_reference, attention_triton\n"
        "torch.manual_seed(0)\n"
        "q, k, v = (torch.randn(1, 2, 64, 64).bfloat16().requires_grad_() for _ in range(3))\n"
        "out = attention_triton(q, k, v)\n"
        "ours = torch.autograd.grad(out.sum(), (q, k, v))\n"
        "exact = [x.detach().double().requires_grad_() for x in (q, k, v)]\n"
        "truth = torch.autograd.grad(attention_reference(*exact).sum(), exact)\n"
        "print(max((a - b).abs().max().item() for a, b in zip(ours, truth)))\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 0.05
