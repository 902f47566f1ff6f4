"""Tensors that were saved on the host come back as they were, and in time."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrk.memory.offload import HostCopies, _Copy

LAYERS = 4


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(6, 6) for _ in range(LAYERS))


def living() -> list[_Copy]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, _Copy)]


def forward(layers, x, copies=None):
    for layer in layers:
        if copies is None:
            x = checkpoint(layer, x, use_reentrant=False).tanh()
            continue
        with copies.saving():
            x = checkpoint(layer, x, use_reentrant=False)
        x = x.tanh()
    return x.square().sum()


def test_same_gradients(layers):
    ours, x = copy.deepcopy(layers), torch.randn(3, 6, requires_grad=True)
    forward(layers, x).backward()
    expected, x.grad = x.grad, None
    copies = HostCopies()
    for _ in range(2):
        x.grad = None
        ours.zero_grad()
        forward(ours, x, copies).backward()
        assert torch.equal(x.grad, expected)
        for one, other in zip(ours.parameters(), layers.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)


def test_one_copy_stays_on_the_device_until_the_next_has_begun(layers):
    loss = forward(layers, torch.randn(3, 6, requires_grad=True), HostCopies())
    assert [each.on_device is not None for each in living()].count(True) == 1
    assert len(living()) == LAYERS
    loss.backward()
    del loss
    assert not living()


def test_a_copy_can_be_taken_twice(layers):
    x = torch.randn(3, 6, requires_grad=True)
    loss = forward(layers, x, HostCopies())
    loss.backward(retain_graph=True)
    once, x.grad = x.grad, None
    loss.backward()
    assert torch.equal(x.grad, once)


def test_an_abandoned_forward_pass_leaves_nothing(layers):
    copies = HostCopies()
    forward(layers, torch.randn(3, 6, requires_grad=True), copies)
    assert not living()
    forward(layers, torch.randn(3, 6, requires_grad=True), copies).backward()


def test_what_is_written_to_the_original_later_does_not_reach_the_copy():
    x = torch.ones(4, requires_grad=True)
    with HostCopies().saving():
        y = x.exp()
        (z,) = (y * y,)
    z.sum().backward()
    torch.testing.assert_close(x.grad, 2 * (2 * x).exp().detach())


@pytest.mark.gpu
def test_on_a_gpu(layers):
    layers = layers.cuda()
    test_same_gradients(layers.cpu())
    x = torch.randn(3, 6, device="cuda", requires_grad=True)
    layers = layers.cuda()
    forward(layers, x).backward()
    expected, x.grad = x.grad, None
    forward(layers, x, HostCopies()).backward()
    assert torch.equal(x.grad, expected)
