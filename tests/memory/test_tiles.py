"""Tiles change neither values nor gradients, and under checkpointing cost no third computation."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrk.memory.tiles import tiled
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as

BATCH, LENGTH, SIZE, TILE = 2, 13, 8, 5
TILES = [5, 5, 5, 5, 5, 1]


class Mlp(nn.Module):
    """Remembers how many tokens it was given."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.wide, self.narrow = nn.Linear(SIZE, 40), nn.Linear(40, SIZE, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.calls = []

    def forward(self, x):
        self.calls.append(x.shape[-2])
        return x + self.narrow(self.dropout(nn.functional.silu(self.wide(x))))


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return Mlp()


def step(mlp, x, tile, checkpointed=False, autocast=False):
    """Result and gradients of input and parameters."""
    x = x.detach().requires_grad_()

    def compute(x):
        return tiled(mlp, x.sin(), list(mlp.parameters()), tile)

    with torch.autocast("cpu", torch.bfloat16, autocast):
        y = checkpoint(compute, x, use_reentrant=False) if checkpointed else compute(x)
    y.float().sin().sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in mlp.parameters())]
    return y.detach(), gradients


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)],
    ids=["float32", "bfloat16", "autocast"],
)
def test_as_exact_as_plain(mlp, dtype, autocast, checkpointed):
    x = torch.randn(BATCH, LENGTH, SIZE)
    truth = step(copy.deepcopy(mlp).double(), x.double(), BATCH * LENGTH)
    mlp = mlp.to(dtype)
    plain = step(copy.deepcopy(mlp), x.to(dtype), BATCH * LENGTH, checkpointed, autocast)
    ours = step(mlp, x.to(dtype), TILE, checkpointed, autocast)
    assert_as_exact_as(ours[0], plain[0], truth[0], OUTPUT_FACTOR, "result")
    for index, results in enumerate(zip(ours[1], plain[1], truth[1], strict=True)):
        assert_as_exact_as(*results, GRADIENT_FACTOR, f"gradient {index}")
    assert mlp.calls == 2 * TILES


def test_many_tiles_in_bfloat16_round_once(mlp):
    """Summed in bfloat16, 500 gradients that are all alike would stop growing."""
    mlp = mlp.bfloat16()
    x = torch.randn(1, 1, SIZE).expand(1, 500, SIZE).bfloat16()
    truth = step(copy.deepcopy(mlp).double(), x.double(), 500)
    _, gradients = step(mlp, x, 1)
    for ours, exact in zip(gradients[1:], truth[1][1:], strict=True):
        assert (ours - exact).abs().max() <= 0.05 * exact.abs().max()


def test_dropout_repeats():
    """The gradient is that of the very function whose value was taken."""
    torch.manual_seed(0)
    mlp = Mlp(dropout=0.5).double()
    x = torch.randn(1, 7, SIZE, dtype=torch.float64, requires_grad=True)

    def value(x):
        torch.manual_seed(1)
        return tiled(mlp, x, list(mlp.parameters()), 3).sin().sum()

    value(x).backward()
    direction, tiny = torch.randn_like(x), 1e-6
    with torch.no_grad():
        slope = (value(x + tiny * direction) - value(x - tiny * direction)) / (2 * tiny)
    torch.testing.assert_close((x.grad * direction).sum(), slope, rtol=1e-6, atol=1e-6)


def test_random_state_after_the_backward_pass_is_what_it_was(mlp):
    result = tiled(mlp, torch.randn(1, 7, SIZE, requires_grad=True), list(mlp.parameters()), 3)
    state = torch.get_rng_state()
    result.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_frozen_function_and_a_frozen_input(mlp):
    x = torch.randn(1, 7, SIZE)
    expected = step(mlp, x, 7)[1]
    mlp.zero_grad()
    tiled(mlp, x.sin(), list(mlp.parameters()), 3).sin().sum().backward()
    torch.testing.assert_close(mlp.narrow.weight.grad, expected[3])
    for parameter in mlp.parameters():
        parameter.requires_grad_(False)
    torch.testing.assert_close(step(mlp, x, 3)[1][0], expected[0])
    assert not tiled(mlp, x, list(mlp.parameters()), 3).requires_grad


def test_without_gradients_each_tile_is_computed_once(mlp):
    with torch.no_grad():
        tiled(mlp, torch.randn(BATCH, LENGTH, SIZE), list(mlp.parameters()), TILE)
    assert mlp.calls == TILES


def test_gradients_where_autocast_cached_its_casts(mlp):
    """Casts made without a graph must not serve a computation with one."""
    x = torch.randn(1, 7, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        tiled(mlp, x, list(mlp.parameters()), 3).float().sum().backward()
    assert mlp.wide.weight.grad is not None


def test_changed_weights_are_noticed(mlp):
    result = tiled(mlp, torch.randn(1, 7, SIZE), list(mlp.parameters()), 3)
    with torch.no_grad():
        mlp.wide.weight.add_(1)
    with pytest.raises(RuntimeError, match="changed before its backward pass"):
        result.sum().backward()
