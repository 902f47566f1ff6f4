"""The specification against PyTorch's own attention and against its rules spelled out."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lrk.kernels.attention import attention_reference


def _inputs(batch=2, heads=4, kv_heads=2, q_length=9, k_length=9, head_dim=8):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, q_length, head_dim, dtype=torch.float64)
    k, v = torch.randn(2, batch, kv_heads, k_length, head_dim, dtype=torch.float64)
    return q, k, v


@pytest.mark.parametrize("causal", [True, False])
def test_is_sdpa_without_extras(causal):
    q, k, v = _inputs()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert_close(attention_reference(q, k, v, causal=causal), expected)


def test_documents_are_separate_calls():
    q, k, v = _inputs()
    ends = torch.tensor([0, 4, 4, 9, 9 + 1, 9 + 9])
    out, lse = attention_reference(q, k, v, cu_seqlens=ends, return_lse=True)
    for row, start, end in ((0, 0, 4), (0, 4, 9), (1, 0, 1), (1, 1, 9)):
        document = (slice(row, row + 1), slice(None), slice(start, end))
        alone = attention_reference(q[document], k[document], v[document], return_lse=True)
        assert_close((out[document], lse[document]), alone)


def test_last_query_of_a_document_sits_at_its_last_key():
    q, k, v = _inputs(batch=1, q_length=3, k_length=8)
    # Keys 0-2 are padding, which one query belongs to; two queries go with the other five.
    out = attention_reference(
        q, k, v, cu_seqlens=torch.tensor([0, 1, 3]), cu_seqlens_k=torch.tensor([0, 3, 8])
    )
    seen = torch.zeros(3, 8, dtype=torch.bool)
    seen[0, :3] = True
    seen[1, 3:7] = True
    seen[2, 3:8] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    assert_close(out, expected)


def test_kv_lengths_and_offsets():
    q, k, v = _inputs(q_length=2)
    lengths = torch.tensor([5, 9])
    out = attention_reference(q, k, v, kv_lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = attention_reference(
            q[row, None], k[row, None, :, :length], v[row, None, :, :length]
        )
        assert_close(out[row, None], expected)
    assert_close(attention_reference(q, k, v, kv_lengths=lengths, q_offset=lengths - 2), out)
    assert_close(
        attention_reference(q, k, v, q_offset=3),
        attention_reference(q, k[:, :, :5], v[:, :, :5]),
    )


def test_window_in_tokens_and_in_positions():
    q, k, v = _inputs(batch=1)
    index = torch.arange(9)
    distance = index[:, None] - index[None, :]
    seen = (distance >= 0) & (distance < 3)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    assert_close(attention_reference(q, k, v, window=3), expected)

    positions = torch.tensor([[0, 1, 2, 50, 51, 52, 53, 90, 91]])
    distance = positions[0, :, None] - positions[0, None, :]
    seen = (distance >= 0) & (distance < 3)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    assert_close(attention_reference(q, k, v, window=3, window_position_ids=positions), expected)


def test_softcap_and_lse():
    q, k, v = _inputs(batch=1, heads=2, kv_heads=2)
    out, lse = attention_reference(q, k, v, causal=False, softcap=2.0, scale=0.7, return_lse=True)
    scores = 2.0 * torch.tanh(q @ k.mT * 0.7 / 2.0)
    assert_close(out, scores.softmax(-1) @ v)
    assert_close(lse, scores.exp().sum(-1).log())


def test_queries_without_keys_give_zero_and_no_nan():
    inputs = [x.requires_grad_() for x in _inputs(q_length=9, k_length=4)]
    out, lse = attention_reference(*inputs, return_lse=True)
    assert (out[:, :, :5] == 0).all()
    assert torch.isneginf(lse[:, :, :5]).all()
    assert lse[:, :, 5:].isfinite().all()
    gradients = torch.autograd.grad(out.sum() + lse[:, :, 5:].sum(), inputs)
    assert (gradients[0][:, :, :5] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)
