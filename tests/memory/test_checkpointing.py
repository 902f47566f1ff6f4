"""Checkpointing in its three choices: the same gradients, no more computation."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.memory import checkpointing
from lrk.memory.offload import HostCopies

LAYERS = 2
INPUT_IDS = torch.arange(2, 26).view(2, 12)
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 53, 90, 91, 92, 93]])


def llama(layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return lrk.patch(LlamaForCausalLM(config).train())


@pytest.fixture
def model():
    return llama(LAYERS)


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
    model.zero_grad()
    with Calls() as calls:
        loss = model(INPUT_IDS, labels=INPUT_IDS, position_ids=SKIPPED).loss
        loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters()}, calls


def assert_same(ours, theirs):
    assert torch.equal(ours[0], theirs[0])
    for name, gradient in ours[1].items():
        assert torch.equal(gradient, theirs[1][name]), name


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


def test_inputs_on_the_host(model):
    elsewhere = copy.deepcopy(model)
    checkpointing.enable(elsewhere, keep_attention=False, copies=HostCopies())
    assert_same(step(elsewhere), step(model))


@pytest.mark.parametrize("each", [2, 3, 5])
@pytest.mark.parametrize("kept", [False, True])
def test_several_layers_a_checkpoint(each, kept):
    model = llama(layers=5)
    rarer = copy.deepcopy(model)
    checkpointing.enable(rarer, kept, layers_per_checkpoint=each)
    names = [name for name, _ in model.named_modules()]
    for twin in (rarer, copy.deepcopy(rarer)):
        assert_same(step(twin), step(model))
        assert [name for name, _ in twin.named_modules()] == names
    # As often as each layer by itself.
    usual = copy.deepcopy(model)
    checkpointing.enable(usual, kept)
    assert step(rarer)[2].attention == step(usual)[2].attention == (5 if kept else 10)


def test_groups_end_with_the_next_call(model):
    checkpointing.enable(model, layers_per_checkpoint=2)
    calls = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: calls.append(torch._C._current_graph_task_id()))
    step(model)
    # The last layer is left as soon as all that was saved is there again.
    assert [call == -1 for call in calls] == [True, True, False]
    checkpointing.enable(model)
    calls.clear()
    step(model)
    assert [call == -1 for call in calls] == [True, True]


def test_an_error_inside_leaves_the_model_as_it_was(model):
    checkpointing.enable(model, layers_per_checkpoint=2)
    layers = model.model.layers
    with pytest.raises(ValueError, match="position_ids start again"):
        model(INPUT_IDS, position_ids=torch.zeros_like(INPUT_IDS))
    assert model.model.layers is layers


def test_switched_off_by_transformers(model):
    checkpointing.enable(model, layers_per_checkpoint=2)
    off = getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)
    off()
    assert step(model)[2].attention == LAYERS


def test_anothers_attention_is_computed_again():
    model = lrk.patch(llama(layers=3), attention="sdpa")
    rarer = copy.deepcopy(model)
    checkpointing.enable(rarer, keep_attention=False, layers_per_checkpoint=2)
    assert_same(step(rarer), step(model))
    with pytest.raises(ValueError, match="attention implementation 'lrk_torch', of which nothing"):
        checkpointing.enable(rarer)


def test_bad_choices_are_refused(model):
    with pytest.raises(ValueError, match="layers_per_checkpoint is 0; it must be at least 1"):
        checkpointing.enable(model, layers_per_checkpoint=0)
    lrk.patch(model, attention=False)
    with pytest.raises(ValueError, match="attention implementation 'sdpa', of which nothing"):
        checkpointing.enable(model)
    with pytest.raises(ValueError, match="layers_per_checkpoint is 2 with the attention"):
        checkpointing.enable(model, keep_attention=False, layers_per_checkpoint=2)


def test_without_gradients_nothing_is_kept(model):
    checkpointing.enable(model)
    with torch.no_grad(), Calls() as calls:
        model(INPUT_IDS, labels=INPUT_IDS, position_ids=SKIPPED)
    assert calls.attention == LAYERS
