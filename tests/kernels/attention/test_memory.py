"""Which tensors tensor descriptors are made of."""

import pytest
import torch

from lrk.kernels.attention.memory import is_described


def heads(length: int = 100, head_dim: int = 64, heads: int = 8) -> torch.Tensor:
    """(1, heads, length, head_dim) as models make it, without memory."""
    shape = (1, length, heads, head_dim)
    return torch.empty(shape, dtype=torch.bfloat16, device="meta").transpose(1, 2)


@pytest.mark.parametrize("arch", ["sm_90", "sm_100", "sm_103", "sm_110"])
def test_what_models_make_is_described(arch):
    assert is_described(arch, heads())
    assert is_described(arch, heads(length=1))


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_120", "gfx942"])
def test_others_have_no_accelerator(arch):
    assert not is_described(arch, heads())


@pytest.mark.parametrize(
    "x",
    [
        heads(length=0),
        heads(head_dim=20),  # heads 40 bytes apart
        heads().mT,
        heads()[..., 1:],
        heads()[:, :, :1].expand(-1, -1, 100, -1),
    ],
)
def test_what_it_cannot_read(x):
    assert not is_described("sm_90", x)


def test_a_tensor_of_two_gibibytes_comes_by_pointers():
    row = 8 * 64 * 2
    assert is_described("sm_90", heads(length=2**31 // row - 1))
    assert not is_described("sm_90", heads(length=2**31 // row + 1))
