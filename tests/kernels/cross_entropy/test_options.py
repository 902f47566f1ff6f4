"""Every option, alone and in pairs: loss, lse and all gradients against float64."""

import itertools

import pytest
import torch

from lrk.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference

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
    make_case(shape=(3, 11), **keywords).check(function)


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
    ours = case.check(function)["loss"]
    # Not as exact as a stock head: far more, since that rounds its logits to 16 bits.
    truth = case.evaluate(linear_cross_entropy_reference, torch.float64)["loss"]
    assert (ours - truth).abs().max() < 1e-6 * truth.abs().max()


def test_a_confident_token_has_an_exact_small_loss(function, device):
    """Loss 1e-4 beside a log-sum-exp of 100, whose rounding error is 4e-6."""
    hidden = torch.tensor([[100.0]], device=device)
    weight = torch.tensor([[1.0], [0.90625]], device=device)
    labels = torch.tensor([0], device=device)
    truth = linear_cross_entropy_reference(hidden.double(), weight.double(), labels)
    loss = function(hidden, weight, labels)
    assert abs(loss.item() - truth.item()) < 1e-7


@pytest.mark.parametrize("vocab", [1, 2, 3])
def test_tiny_vocabulary(vocab, function, make_case):
    case = make_case(shape=(5,), vocab=vocab, width=1, return_lse=True, label_smoothing=0.1)
    truth = case.evaluate(linear_cross_entropy_reference, torch.float64)
    for name, value in case.evaluate(function, torch.float32).items():
        torch.testing.assert_close(value.double(), truth[name], rtol=1e-6, atol=2e-7, msg=name)


def test_double_precision_on_cpu(make_case):
    for options in ({}, {"return_lse": True}):
        case = make_case(with_bias=True, with_token_weight=True, softcap=4.0, **options)
        truth = case.evaluate(linear_cross_entropy_reference, torch.float64)
        ours = case.evaluate(linear_cross_entropy, torch.float64)
        for name, value in ours.items():
            torch.testing.assert_close(value, truth[name], rtol=1e-12, atol=1e-13)
