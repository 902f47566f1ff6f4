"""Log-probabilities without logits: values and gradients against float64."""

import pytest
import torch

from lrk.kernels.cross_entropy import (
    token_logprobs,
    token_logprobs_reference,
    token_logprobs_triton,
)
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as


@pytest.mark.parametrize("implementation", [token_logprobs, token_logprobs_triton])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "chunk_tokens": 5}], ids=str)
def test_token_logprobs(implementation, dtype, options, make_case, poisoned):
    case = make_case(shape=(3, 16), dtype=dtype, with_bias=True)

    def evaluate(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (case.hidden, case.weight, case.bias)]
        hidden, weight, bias = leaves
        outputs = function(hidden, weight, case.labels, bias, **options)
        factors = torch.arange(1.0, 4.0, device=hidden.device).to(outputs[0].dtype)
        (torch.stack(list(outputs), -1) * factors).sum().backward()
        return [output.detach() for output in outputs], [leaf.grad for leaf in leaves]

    truth = evaluate(token_logprobs_reference, torch.float64)
    plain = evaluate(token_logprobs_reference, dtype)
    ours = evaluate(implementation, dtype)
    for factor, *values in zip((OUTPUT_FACTOR, GRADIENT_FACTOR), ours, plain, truth, strict=True):
        for value, in_plain, in_truth in zip(*values, strict=True):
            assert_as_exact_as(value, in_plain, in_truth, factor, "token_logprobs")


def test_names_and_the_loss_agree(make_case):
    case = make_case()
    found = token_logprobs(case.hidden, case.weight, case.labels)
    assert found._fields == ("logprob", "label_logit", "lse")
    torch.testing.assert_close(found.logprob, found.label_logit - found.lse)
    assert (found.lse[case.labels == -100] == 0).all()


def test_bad_arguments(make_case):
    case = make_case()
    with pytest.raises(ValueError, match="softcap must be a positive number or None, got -1"):
        token_logprobs(case.hidden, case.weight, case.labels, softcap=-1.0)
    case.labels[0, 1] = 101
    with pytest.raises(ValueError, match=r"labels\[0, 1\] is 101"):
        token_logprobs(case.hidden, case.weight, case.labels)
