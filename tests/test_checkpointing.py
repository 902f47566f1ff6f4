"""Checkpointing that keeps attention: the same gradients, half the calls."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk import checkpointing

LAYERS = 2
INPUT_IDS = torch.arange(2, 26).view(2, 12)
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 53, 90, 91, 92, 93]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return lrk.patch(LlamaForCausalLM(config).train())


class Calls(TorchDispatchMode):
    """Counts what reaches the device."""

    def __init__(self):
        super().__init__()
        self.attention = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.attention += func is torch.ops.lrk.attention.default
        self.products += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def step(model):
    with Calls() as calls:
        loss = model(INPUT_IDS, labels=INPUT_IDS, position_ids=SKIPPED).loss
        loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters()}, calls


def test_same_gradients_and_half_the_attention(model):
    kept, recomputed = copy.deepcopy(model), copy.deepcopy(model)
    checkpointing.enable(kept)
    recomputed.gradient_checkpointing_enable({"use_reentrant": False})
    expected_loss, expected, plain_calls = step(model)
    *_, recomputed_calls = step(recomputed)
    loss, gradients, calls = step(kept)
    assert torch.equal(loss, expected_loss)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    assert recomputed_calls.attention == 2 * LAYERS
    assert calls.attention == plain_calls.attention == LAYERS
    assert calls.products == recomputed_calls.products > plain_calls.products


def test_dropout_of_other_modules_repeats(model):
    """The random state is restored for what is computed again."""
    for layer in model.model.layers:
        layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.5))
    kept = copy.deepcopy(model)
    checkpointing.enable(kept)
    results = []
    for each in (model, kept):
        torch.manual_seed(1)
        results.append(step(each)[1])
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


def test_other_attention_is_refused(model):
    with pytest.raises(ValueError, match="attention implementation 'sdpa'"):
        checkpointing.enable(lrk.patch(model, attention=False))


def test_without_gradients_nothing_is_kept(model):
    checkpointing.enable(model)
    with torch.no_grad(), Calls() as calls:
        model(INPUT_IDS, labels=INPUT_IDS, position_ids=SKIPPED)
    assert calls.attention == LAYERS
