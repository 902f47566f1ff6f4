"""Steps in the backward pass are those after it, and leave no gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from lrk.memory.host_optimizer import HostOptimizer
from lrk.memory.step_in_backward import StepInBackward

X = torch.arange(12.0).view(3, 4)


@pytest.fixture
def model():
    """The middle weight is used twice."""
    torch.manual_seed(0)
    middle = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), middle, nn.Tanh(), middle, nn.Linear(4, 2))


@pytest.mark.parametrize("on_host", [False, True], ids=["device", "host"])
def test_same_weights_and_norm(model, on_host):
    other = copy.deepcopy(model)
    plain, ours = AdamW(model.parameters(), lr=0.1), AdamW(other.parameters(), lr=0.1)
    if on_host:
        ours = HostOptimizer(ours)
    in_backward = StepInBackward(ours)
    for _ in range(3):
        model(X).square().sum().backward()
        norm = nn.utils.get_total_norm([each.grad for each in model.parameters()])
        plain.step()
        plain.zero_grad()
        other(X).square().sum().backward()
        torch.testing.assert_close(in_backward.take_norm(), norm)
        ours.step()
        assert all(each.grad is None for each in other.parameters())
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert in_backward.take_norm() == 0


def test_gradients_of_one_parameter_at_a_time(model):
    most = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: most.append(sum(each.grad is not None for each in model.parameters()))
        )
    StepInBackward(AdamW(model.parameters()))
    model(X).sum().backward()
    assert most == [1] * len(list(model.parameters()))


def test_removed(model):
    optimizer = AdamW(model.parameters())
    StepInBackward(optimizer).remove()
    before = copy.deepcopy(model.state_dict())
    model(X).sum().backward()
    assert all(each.grad is not None for each in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
