"""Log-probabilities and entropies without logits: values and gradients against float64."""

import math
import random

import pytest
import torch

from lrk.kernels.cross_entropy import (
    kernel,
    token_logprobs,
    token_logprobs_reference,
    token_logprobs_triton,
)
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as


@pytest.fixture(params=[token_logprobs, token_logprobs_triton])
def implementation(request):
    return request.param


def evaluate(function, case, dtype, pull=(1.0, 2.0, 3.0, -1.5), **options):
    """Outputs, and the gradients where each output is pulled by a factor of its own."""
    tensors = [case.hidden, case.weight] + ([] if case.bias is None else [case.bias])
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    bias = leaves[2] if case.bias is not None else None
    outputs = [
        output
        for output in function(*leaves[:2], case.labels, bias, **options)
        if output is not None
    ]
    places = torch.linspace(0.5, 1.5, case.labels.numel(), device=case.labels.device)
    pulled = sum(
        (factor * places.view(case.labels.shape).to(output) * output).sum()
        for factor, output in zip(pull, outputs, strict=False)
    )
    pulled.backward()
    return [output.detach() for output in outputs], [leaf.grad for leaf in leaves]


def check(implementation, case, dtype, judged=(0, 1, 2, 3), **options):
    truth = evaluate(token_logprobs_reference, case, torch.float64, **options)
    plain = evaluate(token_logprobs_reference, case, dtype, **options)
    ours = evaluate(implementation, case, dtype, **options)
    for factor, kind, *values in zip(
        (OUTPUT_FACTOR, GRADIENT_FACTOR), ("output", "gradient"), ours, plain, truth, strict=True
    ):
        for place, (value, in_plain, in_truth) in enumerate(zip(*values, strict=True)):
            if kind == "gradient" or place in judged:
                assert_as_exact_as(value, in_plain, in_truth, factor, f"{kind} {place}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "chunk_tokens": 5}], ids=str)
def test_token_logprobs(implementation, dtype, entropy, options, make_case, poisoned):
    case = make_case(shape=(3, 16), dtype=dtype, with_bias=True)
    check(implementation, case, dtype, entropy=entropy, **options)


@pytest.mark.parametrize("number", range(24))
def test_entropy_at_random(implementation, number, make_case, poisoned):
    """Sharp and flat distributions, odd vocabularies, rows on chip and in steps."""
    dice = random.Random(number)
    ignore_index = dice.choice([-100, 0])
    case = make_case(
        shape=(dice.choice([8, 15]),),
        vocab=dice.choice([2, 33, 507, 1000, 4099]),
        width=dice.randint(8, 90),
        dtype=dice.choice([torch.float32, torch.bfloat16, torch.float16]),
        with_bias=dice.random() < 0.5,
        seed=number,
        ignore_index=ignore_index,
    )
    case.hidden *= dice.choice([0.1, 1.0, 5.0])
    options = {
        "softcap": dice.choice([None, 3.0, 30.0]),
        "chunk_tokens": dice.choice([None, 4]),
        "ignore_index": ignore_index,
    }
    # The label's logit is lse - nll, with the rounding error of an lse that is far larger here.
    check(implementation, case, case.hidden.dtype, judged=(0, 2, 3), entropy=True, **options)


@pytest.mark.parametrize("on_chip", [False, True])
def test_entropy_of_confident_tokens(on_chip, implementation, device, monkeypatch):
    """Logits of -600 to 100 beside entropies of 1e-3: p and 1 - p for odds of e^-gap."""
    monkeypatch.setattr(
        kernel, "tile", lambda vocab, plain: {"BLOCK": 8, "ON_CHIP": on_chip, "num_warps": 4}
    )
    gaps = torch.tensor([0.0, 0.5, 5.0, 9.0, 700.0], device=device)
    hidden = torch.stack([torch.full_like(gaps, 100.0), gaps], 1).requires_grad_()
    weight = torch.tensor([[1.0, -1.0], [1.0, 0.0]], device=device)
    labels = torch.zeros(5, dtype=torch.int64, device=device)
    found = implementation(hidden, weight, labels, entropy=True).entropy
    found.sum().backward()
    double = gaps.double().requires_grad_()
    p = torch.sigmoid(-double)
    expected = torch.special.entr(p) + torch.special.entr(1 - p)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-7)
    # dH / dgap = -gap p (1 - p)
    slope = -double * p * (1 - p)
    torch.testing.assert_close(hidden.grad[:, 1].double(), slope, rtol=2e-6, atol=1e-7)


def test_entropy_of_a_uniform_distribution_and_of_a_masked_one(implementation, device):
    hidden = torch.zeros(1, 4, device=device, requires_grad=True)
    weight, bias = torch.ones(37, 4, device=device), torch.zeros(37, device=device)
    bias[5:] = float("-inf")
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    whole = implementation(hidden, weight, labels, entropy=True).entropy
    masked = implementation(hidden, weight, labels, bias=bias, entropy=True).entropy
    assert whole.item() == pytest.approx(math.log(37), rel=1e-6)
    assert masked.item() == pytest.approx(math.log(5), rel=1e-6)
    (whole + 3.0 * masked).sum().backward()
    assert hidden.grad.abs().max() < 1e-6


def test_entropy_beside_nothing_kept(implementation, make_case):
    case = make_case(shape=(2, 3))
    case.labels.fill_(-100)
    (*_, entropy), gradients = evaluate(implementation, case, torch.float32, entropy=True)
    assert all(x.count_nonzero() == 0 for x in (entropy, *gradients))


@pytest.mark.parametrize("dynamic", [False, True])
def test_entropy_compiles_without_graph_break(dynamic, make_case):
    torch._dynamo.reset()
    compiled = torch.compile(token_logprobs, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in [(2, 9), (2, 11)]:
        case = make_case(shape, vocab=33, with_bias=True)
        plain = evaluate(token_logprobs, case, torch.float32, entropy=True)
        found = evaluate(compiled, case, torch.float32, entropy=True)
        torch.testing.assert_close(found, plain)


def test_names_and_the_loss_agree(make_case):
    case = make_case()
    found = token_logprobs(case.hidden, case.weight, case.labels)
    assert found._fields == ("logprob", "label_logit", "lse", "entropy")
    assert found.entropy is None
    torch.testing.assert_close(found.logprob, found.label_logit - found.lse)
    assert (found.lse[case.labels == -100] == 0).all()


def test_entropy_changes_nothing_else(implementation, make_case):
    case = make_case()
    pull = (1.0, 2.0, 3.0, 0.0)
    without = evaluate(implementation, case, torch.float32)
    beside = evaluate(implementation, case, torch.float32, pull, entropy=True)
    for values, others in zip(without, beside, strict=True):
        for value, other in zip(values, others, strict=False):
            assert torch.equal(value, other)


def test_bad_arguments(make_case):
    case = make_case()
    with pytest.raises(ValueError, match=r"softcap must be from 1e-15 to .* or None, got -1"):
        token_logprobs(case.hidden, case.weight, case.labels, softcap=-1.0)
    case.labels[0, 1] = 101
    with pytest.raises(ValueError, match=r"labels\[0, 1\] is 101"):
        token_logprobs(case.hidden, case.weight, case.labels)
