"""The specification itself, against PyTorch's cross-entropy and against numbers by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lrk.kernels.cross_entropy import linear_cross_entropy_reference, token_logprobs_reference


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_equals_linear_and_cross_entropy(reduction, label_smoothing, make_case):
    case = make_case(shape=(31,), with_bias=True)
    expected = F.cross_entropy(
        F.linear(case.hidden, case.weight, case.bias),
        case.labels,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    ours = linear_cross_entropy_reference(
        case.hidden,
        case.weight,
        case.labels,
        case.bias,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    torch.testing.assert_close(ours, expected)


def test_every_term_by_hand():
    """Two logits, 0 and log 3: lse = log 4, probabilities 1/4 and 3/4."""
    hidden = torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64)
    weight = torch.tensor([[0.0], [math.log(3.0)]], dtype=torch.float64)
    labels, token_weight = torch.tensor([0, 1, -100]), torch.tensor([3.0, 1.0, 50.0]).double()

    def loss(**options):
        return linear_cross_entropy_reference(hidden, weight, labels, **options).tolist()

    four, three = math.log(4.0), math.log(3.0)
    first, second = four, four - three
    near = pytest.approx
    assert loss(reduction="none") == near([first, second, 0.0])
    assert loss() == near((first + second) / 2)
    assert loss(token_weight=token_weight) == near((3 * first + second) / 4)
    assert loss(token_weight=token_weight, reduction="sum") == near(3 * first + second)
    assert loss(num_items=5) == loss(num_items=torch.tensor(5.0)) == near((first + second) / 5)
    assert loss(token_weight=token_weight, num_items=5) == near((3 * first + second) / 5)
    assert loss(z_loss=0.5, reduction="none") == near(
        [first + 0.5 * four**2, second + 0.5 * four**2, 0.0]
    )
    assert loss(label_smoothing=0.2, reduction="none") == near(
        [0.8 * first + 0.2 * (four - three / 2), 0.8 * second + 0.2 * (four - three / 2), 0.0]
    )
    capped = 0.5 * math.tanh(three / 0.5)
    assert loss(softcap=0.5, reduction="none")[0] == near(math.log(1 + math.exp(capped)))
    _, lse = linear_cross_entropy_reference(hidden, weight, labels, return_lse=True)
    assert lse.tolist() == near([four, four, 0.0])
    logprob, logit, lse = token_logprobs_reference(hidden, weight, labels)
    assert logprob.tolist() == near([-first, -second, 0.0])
    assert logit.tolist() == near([0.0, three, 0.0])
    assert lse.tolist() == near([four, four, 0.0])
