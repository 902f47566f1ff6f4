"""Every option, alone and in pairs: loss, lse and all gradients against float64."""

import itertools

import pytest
import torch

from lrk.kernels.cross_entropy import linear_cross_entropy_reference
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as

OPTIONS = {
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "bias": {"with_bias": True},
    "token_weight": {"with_token_weight": True},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.01},
    "softcap": {"softcap": 3.0},
    "num_items": {"num_items": 11},
    "num_items_tensor": {"num_items": torch.tensor(17)},
    "return_lse": {"return_lse": True},
    "chunk_tokens": {"chunk_tokens": 7},
    "ignore_index": {"ignore_index": 5},
    "ignore_nothing": {"ignore_index": None},
}
CLASHES = [{"sum", "none"}, {"num_items", "num_items_tensor"}, {"ignore_index", "ignore_nothing"}]
CLASHES += [{a, b} for a in ("sum", "none") for b in ("num_items", "num_items_tensor")]
COMBINATIONS = [
    (),
    *((name,) for name in OPTIONS),
    *(pair for pair in itertools.combinations(OPTIONS, 2) if set(pair) not in CLASHES),
]


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_options_alone_and_in_pairs(names, function, make_case, poisoned):
    keywords = {key: value for name in names for key, value in OPTIONS[name].items()}
    case = make_case(**keywords)
    truth = case.evaluate(linear_cross_entropy_reference, torch.float64)
    plain = case.evaluate(linear_cross_entropy_reference, torch.float32)
    ours = case.evaluate(function, torch.float32)
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        factor = GRADIENT_FACTOR if name.startswith("gradient") else OUTPUT_FACTOR
        assert_as_exact_as(value, plain[name], truth[name], factor, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_half_precision_keeps_float32_logits(dtype, reduction, softcap, function, make_case):
    case = make_case(
        dtype=dtype,
        reduction=reduction,
        softcap=softcap,
        with_bias=True,
        with_token_weight=True,
        label_smoothing=0.1,
        z_loss=1e-3,
    )
    truth = case.evaluate(linear_cross_entropy_reference, torch.float64)
    plain = case.evaluate(linear_cross_entropy_reference, dtype)
    ours = case.evaluate(function, dtype)
    for name, value in ours.items():
        factor = GRADIENT_FACTOR if name.startswith("gradient") else OUTPUT_FACTOR
        assert_as_exact_as(value, plain[name], truth[name], factor, name)
    # Not as exact as a stock head: far more, since its logits are rounded to 16 bits.
    assert (ours["loss"] - truth["loss"]).abs().max() < 1e-5 * truth["loss"].abs().max()


def test_double_precision_on_cpu(make_case):
    from lrk.kernels.cross_entropy import linear_cross_entropy

    for options in ({}, {"return_lse": True}):
        case = make_case(with_bias=True, with_token_weight=True, softcap=4.0, **options)
        truth = case.evaluate(linear_cross_entropy_reference, torch.float64)
        ours = case.evaluate(linear_cross_entropy, torch.float64)
        for name, value in ours.items():
            torch.testing.assert_close(value, truth[name], rtol=1e-12, atol=1e-13)
