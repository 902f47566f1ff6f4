"""Every option and a randomised grid: loss and all gradients against float64."""

import math
import random

import pytest
import torch
import torch.nn.functional as F

from lrk.kernels.cross_entropy import kl, linear_kl, linear_kl_reference, linear_kl_triton
from lrk.kernels.cross_entropy.chunks import ChunkSizes

OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "bias": {"with_bias": True, "with_teacher_bias": True},
    "teacher_bias": {"with_teacher_bias": True, "reduction": "none"},
    "token_weight": {"with_token_weight": True},
    "token_weight, none": {"with_token_weight": True, "reduction": "none"},
    "temperature": {"temperature": 2.5},
    "temperature, none": {"temperature": 0.5, "reduction": "none"},
    "softcap": {"softcap": 3.0, "reduction": "none"},
    "teacher_softcap": {"teacher_softcap": 3.0, "temperature": 2},
    "num_items": {"num_items": 11},
    "num_items_tensor": {"num_items": torch.tensor(17), "with_token_weight": True},
    "chunk_tokens": {"chunk_tokens": 7},
    "ignore_index": {"ignore_index": 5},
    "ignore_nothing": {"ignore_index": None},
    "no labels": {"with_labels": False},
    "teacher in bfloat16": {"teacher_dtype": torch.bfloat16},
}
NUM_CASES = 60


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, function, make_case, poisoned):
    make_case(shape=(2, 9), **OPTIONS[name]).check(function)


def draw(number: int, tokens: int) -> dict:
    """Arguments of `make_case`."""
    dice = random.Random(number)
    reduction = dice.choice(["mean", "sum", "none"])
    return {
        "shape": (dice.choice([1, 2]), tokens // 2),
        "vocab": dice.choice([2, 3, 33, 507, 1000, 4097, 5000, dice.randint(4, 1200)]),
        "width": dice.randint(5, 140),
        "teacher_width": dice.randint(5, 140),
        "dtype": dice.choice([torch.float32, torch.bfloat16, torch.float16]),
        "with_bias": dice.random() < 0.4,
        "with_teacher_bias": dice.random() < 0.4,
        "with_token_weight": dice.random() < 0.5,
        "with_labels": dice.random() < 0.8,
        "seed": number,
        "reduction": reduction,
        "num_items": dice.choice([None, tokens + 3]) if reduction == "mean" else None,
        "temperature": dice.choice([1.0, 1.0, 0.7, 2, 8.0]),
        "softcap": dice.choice([None, None, 3.0, 30.0]),
        "teacher_softcap": dice.choice([None, None, 3.0, 30.0]),
        "chunk_tokens": dice.choice([None, None, 5]),
        "ignore_index": dice.choice([-100, None, 0]),
    }


@pytest.mark.parametrize("number", range(NUM_CASES))
def test_grid(number, make_case, poisoned):
    make_case(**draw(number, 100)).check(linear_kl)


@pytest.mark.parametrize("number", range(0, NUM_CASES, 4))
def test_grid_in_triton(number, make_case, device, poisoned):
    """The same draws; fewer tokens in the interpreter, which takes milliseconds for each."""
    make_case(**draw(number, 100 if device.type == "cuda" else 24)).check(linear_kl_triton)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_several_chunks_share_a_product(dtype, reduction, make_case, monkeypatch, poisoned):
    """As on a GPU, whose 16-bit gradients wait beside the logits of a chunk."""
    case = make_case(shape=(29,), dtype=dtype, with_bias=True, reduction=reduction)
    whole = case.check(linear_kl_triton)
    monkeypatch.setattr(kl.divergence, "chunk_sizes", lambda *_, **__: ChunkSizes(5, 12))
    parts = case.check(linear_kl_triton)
    if reduction == "none":
        torch.testing.assert_close(parts["loss"], whole["loss"])
        torch.testing.assert_close(parts["gradient of hidden"], whole["gradient of hidden"])


def test_by_hand(function):
    """Teacher 3/4 and 1/4, student one half each; at temperature 2 the square roots of the odds."""
    one = torch.ones(2, 1, dtype=torch.float32)
    weight, teacher = torch.zeros(2, 1), torch.tensor([[math.log(3.0)], [0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    labels = torch.tensor([0, -100])
    loss = function(one, weight, one, teacher, labels, reduction="none")
    assert loss.tolist() == pytest.approx([expected, 0.0])
    p = 3**0.5 / (1 + 3**0.5)
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 - 2 * p)
    loss = function(one, weight, one, teacher, labels, temperature=2.0)
    assert loss.item() == pytest.approx(4.0 * expected)


def test_reference_equals_kl_div(make_case):
    case = make_case(shape=(31,), with_labels=False, reduction="none", temperature=3.0)
    tensors = case.tensors
    log_q, log_p = (
        F.log_softmax(tensors[hidden] @ tensors[weight].T / 3.0, -1)
        for hidden, weight in (("hidden", "weight"), ("teacher_hidden", "teacher_weight"))
    )
    expected = 9.0 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    ours = linear_kl_reference(**tensors, reduction="none", temperature=3.0)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4])
def test_near_agreement_is_exact(apart, function, make_case):
    """Divergences down to 1e-7 beside terms of 1e-3: float32's rounding alone would be as large."""
    case = make_case(shape=(12,), vocab=1000, apart=apart, with_labels=False, reduction="none")
    truth = case.evaluate(linear_kl_reference, torch.float64)["loss"]
    plain = case.evaluate(linear_kl_reference)["loss"]
    ours = case.evaluate(function)["loss"]
    error, error_of_plain = (((x - truth) / truth).abs().max() for x in (ours, plain))
    # Logits of 10 carry 1e-6, which enters in proportion to their distance.
    assert error < 1e-6 / apart
    if apart == 1e-4:
        assert 0 < truth.max() < 1e-5
        assert error < 0.05 * error_of_plain


def test_agreement_gives_zero(function, make_case):
    case = make_case(apart=0.0, with_bias=True, reduction="none")
    case.tensors["teacher_bias"] = case.tensors["bias"]
    for name, value in case.evaluate(function).items():
        assert value.count_nonzero() == 0, name


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_large_logits_do_not_overflow(scale, function, make_case):
    case = make_case(shape=(9,), reduction="none")
    case.tensors["hidden"] *= scale
    case.check(function)


def test_vocabulary_masked_by_an_infinite_bias(function, make_case):
    case = make_case(shape=(9,), with_bias=True, with_teacher_bias=True, with_labels=False)
    for name in ("bias", "teacher_bias"):
        case.tensors[name][50:] = float("-inf")
    case.tensors["teacher_bias"][40:] = float("-inf")  # what the student alone deems possible
    case.check(function)


def test_what_the_student_excludes_costs_infinitely_much(function, make_case):
    case = make_case(shape=(9,), with_bias=True, with_labels=False, reduction="none")
    case.tensors["bias"][3] = float("-inf")
    assert case.evaluate(function)["loss"].isposinf().all()


def test_double_precision_on_cpu(make_case):
    for reduction in ("mean", "none"):
        case = make_case(with_bias=True, softcap=4.0, reduction=reduction)
        truth = case.evaluate(linear_kl_reference, torch.float64)
        for name, value in case.evaluate(linear_kl, torch.float64).items():
            torch.testing.assert_close(value, truth[name], rtol=1e-12, atol=1e-13)
