"""On the host an optimizer does what it does on the device: bit for bit, where that is the host."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from lrk.memory.host_optimizer import HostOptimizer

KINDS = {
    "AdamW": lambda groups: AdamW(groups, lr=0.1),
    "fused AdamW": lambda groups: AdamW(groups, lr=0.1, fused=True),
    "SGD": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model[2].bfloat16()
    model[0].bias.requires_grad_(False)
    return model


def groups_of(model):
    first, second = model[0].parameters(), model[2].parameters()
    return [{"params": [*first], "weight_decay": 0.1}, {"params": [*second], "weight_decay": 0.0}]


def train(model, optimizer, schedule, steps):
    for _ in range(steps):
        x = torch.arange(10.0).view(2, 5)
        y = model[2](model[1](model[0](x)).bfloat16())
        y.float().square().sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def scheduled(optimizer):
    return LambdaLR(optimizer, lambda step: 1 / (1 + step))


@pytest.mark.parametrize("kind", KINDS)
def test_same_weights_after_a_schedule_and_a_stop(model, kind):
    other = copy.deepcopy(model)
    plain, ours = KINDS[kind](groups_of(model)), HostOptimizer(KINDS[kind](groups_of(other)))
    train(model, plain, scheduled(plain), 5)
    schedule = scheduled(ours)
    train(other, ours, schedule, 3)
    resumed = HostOptimizer(KINDS[kind](groups_of(other)))
    schedule_again = scheduled(resumed)
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    schedule_again.load_state_dict(schedule.state_dict())
    train(other, resumed, schedule_again, 2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_state_dict_fits_the_plain_optimizer(model):
    ours = HostOptimizer(AdamW(groups_of(model)))
    train(model, ours, scheduled(ours), 1)
    plain = AdamW(groups_of(model))
    plain.load_state_dict(ours.state_dict())
    assert plain.state[model[0].weight]["exp_avg"].shape == model[0].weight.shape
    assert len(ours.host_state) == 3 * 3


def test_a_stepped_optimizer_is_refused(model):
    plain = AdamW(groups_of(model))
    train(model, plain, scheduled(plain), 1)
    with pytest.raises(ValueError, match="state of 3 parameters already"):
        HostOptimizer(plain)


def test_the_host_is_the_host_whatever_the_default_device(model):
    plain = AdamW(groups_of(model))
    with torch.device("meta"):
        ours = HostOptimizer(plain)
    buffers = [buffer for pair in ours.buffers.values() for buffer in pair]
    stand_ins = [parameter for group in plain.param_groups for parameter in group["params"]]
    assert {x.device.type for x in (*buffers, *stand_ins)} == {"cpu"}
