"""Merging the attention over two sets of keys."""

import pytest
import torch
from torch.testing import assert_close

from lrk.kernels.attention import attention, attention_reference, merge_attention


@pytest.mark.parametrize("split", [1, 13, 20])
def test_two_halves_make_the_whole(split):
    torch.manual_seed(0)
    inputs = [x.requires_grad_() for x in torch.randn(3, 2, 4, 21, 16, dtype=torch.float64)]
    q, k, v = inputs
    parts = [
        attention_reference(q, k[:, :, s], v[:, :, s], causal=False, return_lse=True)
        for s in (slice(split), slice(split, None))
    ]
    merged = merge_attention(*parts[0], *parts[1])
    whole = attention_reference(q, k, v, causal=False, return_lse=True)
    assert_close(merged, whole)
    weight = torch.randn_like(q)
    gradients = (
        torch.autograd.grad((out * weight).sum() + lse.sum(), inputs)
        for out, lse in (merged, whole)
    )
    assert_close(*gradients)


def test_rows_without_keys_on_either_side_or_both():
    torch.manual_seed(0)
    inputs = [x.requires_grad_() for x in torch.randn(3, 1, 1, 4, 16)]
    q, k, v = inputs
    # Query 0 sees nothing, 1 a key of the first set, 2 one of the second, 3 one of both.
    ends = torch.tensor([0, 1, 2, 3, 4])
    first = attention(
        q, k, v, cu_seqlens=ends, cu_seqlens_k=torch.tensor([0, 0, 2, 2, 4]), return_lse=True
    )
    second = attention(
        q, k, v, cu_seqlens=ends, cu_seqlens_k=torch.tensor([0, 0, 0, 3, 4]), return_lse=True
    )
    out, lse = merge_attention(*first, *second)
    assert (out[0, 0, 0] == 0).all()
    assert torch.isneginf(lse[0, 0, 0])
    assert_close(out[0, 0, 1], first[0][0, 0, 1])
    assert_close(out[0, 0, 2], second[0][0, 0, 2])
    assert_close(lse[0, 0, 3], torch.logaddexp(first[1][0, 0, 3], second[1][0, 0, 3]))
    gradients = torch.autograd.grad(out.sum() + lse[0, 0, 1:].sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_keeps_the_dtype():
    out, lse = torch.randn(1, 2, 3, 8).bfloat16(), torch.randn(1, 2, 3)
    merged, merged_lse = merge_attention(out, lse, out, lse)
    assert merged.dtype == torch.bfloat16
    assert merged_lse.dtype == torch.float32
    assert_close(merged, out)


def test_shapes_are_checked():
    out, lse = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3)
    with pytest.raises(ValueError, match=r"o2 has shape \(1, 2, 2, 8\), o1 \(1, 2, 3, 8\)"):
        merge_attention(out, lse, out[:, :, :2], lse)
    with pytest.raises(ValueError, match=r"lse2 has shape \(1, 2\): must be \(1, 2, 3\)"):
        merge_attention(out, lse, out, lse[..., 0])
