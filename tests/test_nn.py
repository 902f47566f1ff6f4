"""The modules hand all that they are told to the operations."""

import pytest
import torch

from lrk.kernels.cross_entropy import linear_cross_entropy, linear_kl
from lrk.nn import LinearCrossEntropyLoss, LinearKLLoss

HIDDEN, WEIGHT, BIAS = torch.randn(3, 5, 8), torch.randn(11, 8), torch.randn(11)
TEACHER_HIDDEN, TEACHER_WEIGHT = torch.randn(3, 5, 6), torch.randn(11, 6)
LABELS = torch.randint(0, 11, (3, 5))
GIVEN = {"labels": LABELS, "bias": BIAS, "token_weight": torch.rand(3, 5)}


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
