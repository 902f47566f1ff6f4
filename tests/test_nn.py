"""The modules hand all that they are told to the operations."""

import pytest
import torch

from lrk.kernels.cross_entropy import linear_cross_entropy, linear_kl
from lrk.kernels.rope import rope
from lrk.nn import LinearCrossEntropyLoss, LinearKLLoss, RotaryEmbedding

HIDDEN, WEIGHT, BIAS = torch.randn(3, 5, 8), torch.randn(11, 8), torch.randn(11)
TEACHER_HIDDEN, TEACHER_WEIGHT = torch.randn(3, 5, 6), torch.randn(11, 6)
LABELS = torch.randint(0, 11, (3, 5))
GIVEN = {"labels": LABELS, "bias": BIAS, "token_weight": torch.rand(3, 5)}


def test_rotary_embedding():
    q, k = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 5, 16)
    position_ids = torch.randint(0, 1000, (2, 5))
    inv_freq = torch.rand(6, dtype=torch.float64)
    options = {"attention_scaling": 1.3, "interleaved": True}
    expected = rope(q, k, position_ids, inv_freq, **options)
    rotated = RotaryEmbedding(inv_freq, **options)(q, k, position_ids)
    for ours, true in zip(rotated, expected, strict=True):
        assert torch.equal(ours, true)
    rows = rope(q, k, position_ids[:1], inv_freq, **options)
    rotated = RotaryEmbedding(inv_freq, **options)(q, k, position_ids[0])
    for ours, true in zip(rotated, rows, strict=True):
        assert torch.equal(ours, true)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss(reduction):
    options = {"ignore_index": LABELS[0, 0].item(), "reduction": reduction}
    options |= {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 2.0}
    given = GIVEN | {"num_items": 7 if reduction == "mean" else None}
    expected = linear_cross_entropy(HIDDEN, WEIGHT, **given, **options)
    assert torch.equal(LinearCrossEntropyLoss(**options)(HIDDEN, WEIGHT, **given), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_divergence(reduction):
    options = {"ignore_index": LABELS[0, 0].item(), "reduction": reduction}
    options |= {"temperature": 2.0, "softcap": 2.0, "teacher_softcap": 3.0}
    given = GIVEN | {"num_items": 7 if reduction == "mean" else None, "teacher_bias": -BIAS}
    tensors = (HIDDEN, WEIGHT, TEACHER_HIDDEN, TEACHER_WEIGHT)
    expected = linear_kl(*tensors, **given, **options)
    assert torch.equal(LinearKLLoss(**options)(*tensors, **given), expected)
