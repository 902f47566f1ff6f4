"""Norms and MLPs in tiles, alone and with all techniques: the step that stock models take."""

import copy
import pickle

import peft
import pytest
import torch

import lrk
from lrk.frequencies import rope_layer_types
from lrk.hf.canary import tiny_config, tiny_model
from lrk.hf.mixed import mixed
from lrk.hf.tiles import LrkDecoderLayer, LrkRMSNorm
from lrk.memory import checkpointing
from lrk.memory.offload import HostCopies
from lrk.memory.tiles import tiled
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, max_error

INPUT_IDS = torch.arange(2, 48).view(2, 23)
TILE = 7


def step(model):
    model.zero_grad()
    loss = model(INPUT_IDS, labels=INPUT_IDS, use_cache=False).loss
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), gradients


def relative_errors(gradients, truth):
    return [
        max_error(gradient, truth[name]) / truth[name].abs().max().item()
        for name, gradient in gradients.items()
    ]


def assert_as_exact(ours, plain, truth):
    """The worst of the model's gradients, as in tests/hf/test_equals_stock.py."""
    floor = torch.finfo(ours[0].dtype).eps * truth[0].abs().item()
    bound = max(OUTPUT_FACTOR * max_error(plain[0], truth[0]), floor)
    assert max_error(ours[0], truth[0]) <= bound
    worst = max(relative_errors(plain[1], truth[1]))
    assert max(relative_errors(ours[1], truth[1])) <= GRADIENT_FACTOR * worst


def lean(model):
    """Every technique of a forward and backward pass."""
    lrk.patch(model, tile_tokens=TILE)
    layers = 2 if len(rope_layer_types(model.config)) == 1 else 1
    checkpointing.enable(model, True, HostCopies(), layers)
    return model


TECHNIQUES = {"tiles": lambda model: lrk.patch(model, tile_tokens=TILE), "all": lean}


@pytest.mark.support("norms and MLPs in tiles")
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_step_of_the_stock_model(stock, in_float64, technique, record_property):
    if hasattr(stock.config, "num_experts_per_tok"):
        record_property("outcome", "refused")
        with pytest.raises(ValueError, match=r"tile_tokens is given, and \S+ is a .*experts"):
            TECHNIQUES[technique](stock)
        return
    stock.set_attn_implementation("eager")
    truth, plain = step(in_float64(stock)), step(copy.deepcopy(stock))
    assert_as_exact(step(TECHNIQUES[technique](stock)), plain, truth)


def test_layers_that_rotate_otherwise_share_no_checkpoint():
    """A group is given the arguments of one place, and theirs differ."""
    model = lrk.patch(tiny_model(tiny_config("gemma3_text")))
    with pytest.raises(ValueError, match="layers_per_checkpoint is 2, and the model has RoPE"):
        checkpointing.enable(model, layers_per_checkpoint=2)


def test_dropout_repeats_in_tiles():
    """The backward pass drops what the forward pass dropped."""
    model = lrk.patch(tiny_model(tiny_config("phi3", resid_pdrop=0.3)).train(), tile_tokens=TILE)

    def half_of_two(made):  # autograd's own, over the same tiles
        return torch.cat([made(part) for part in hidden.split(TILE, dim=1)], dim=1)

    layer = model.model.layers[0]
    hidden = torch.randn(1, 23, 64, requires_grad=True)
    gradients = []
    for tile in (
        lambda: half_of_two(layer._second_half),
        lambda: tiled(layer._second_half, hidden, [*layer.mlp.parameters()], TILE),
    ):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(tile().square().sum(), hidden)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_in_bfloat16(llama, in_float64, technique):
    llama.set_attn_implementation("eager")
    llama.bfloat16()
    truth, plain = step(in_float64(llama)), step(copy.deepcopy(llama))
    assert_as_exact(step(TECHNIQUES[technique](llama)), plain, truth)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_lora(llama, autocast):
    """Adapters of float32, also where the weights are not, and also under autocast."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(llama, config).train()
    plain = lrk.patch(copy.deepcopy(adapted))
    with torch.autocast("cpu", torch.bfloat16, autocast):
        expected, ours = step(plain), step(lean(adapted))
    tolerance = 0.05 if autocast else 1e-4
    torch.testing.assert_close(ours[0], expected[0], rtol=tolerance, atol=0)
    for name, gradient in ours[1].items():
        largest = expected[1][name].abs().max().item()
        assert max_error(gradient, expected[1][name]) <= tolerance * largest, name


@pytest.mark.parametrize(("layers", "times"), [(1, [2, 2]), (2, [3, 2])])
def test_how_often_tiles_are_computed_under_checkpointing(llama, layers, times):
    """Not a third time, although the layer is computed again too, unless a layer needs the result
    inside a checkpoint."""
    calls = [[], []]
    for layer, seen in zip(llama.model.layers, calls, strict=True):
        layer.mlp.register_forward_hook(
            lambda _, args, __, seen=seen: seen.append(args[0].shape[1])
        )
    lrk.patch(llama, tile_tokens=TILE)
    checkpointing.enable(llama, layers_per_checkpoint=layers)
    step(llama)
    assert calls == [count * [7, 7, 7, 7, 7, 7, 4] for count in times]


def test_unpatch_and_copies(llama):
    before = [(type(each), dict(vars(each))) for each in llama.modules()]
    lrk.patch(llama, tile_tokens=TILE)
    kinds = [type(each) for each in llama.modules()]
    assert sum(issubclass(kind, LrkRMSNorm) for kind in kinds) == 2 * 2 + 1
    assert sum(issubclass(kind, LrkDecoderLayer) for kind in kinds) == 2
    expected = step(llama)[0]
    for clone in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert torch.equal(step(clone)[0], expected)
    lrk.patch(llama)
    assert not any(isinstance(each, LrkRMSNorm) for each in llama.modules())
    lrk.unpatch(llama)
    for (kind, attributes), module in zip(before, llama.modules(), strict=True):
        assert type(module) is kind
        assert vars(module).keys() == attributes.keys()


def test_generation(llama):
    llama.eval()
    expected = llama.generate(INPUT_IDS, max_new_tokens=4, do_sample=False)
    lrk.patch(llama, tile_tokens=TILE)
    assert torch.equal(llama.generate(INPUT_IDS, max_new_tokens=4, do_sample=False), expected)


def test_negative_tiles_are_refused(llama):
    with pytest.raises(ValueError, match="tile_tokens is -1; it must be 0 or positive"):
        lrk.patch(llama, tile_tokens=-1)


@pytest.mark.parametrize("heads_first", [False, True])
def test_a_norm_of_each_head_is_cut_by_tokens(heads_first):
    """Rows of 3 heads: 2 tiles of 7 tokens and one of 3, not of 7 rows."""
    tiles = []

    class Norm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))

        def forward(self, hidden_states):
            tiles.append(hidden_states.shape[1])
            return hidden_states * self.weight

    norm = mixed(LrkRMSNorm, Norm)()
    norm._lrk_tile_tokens = TILE
    x = torch.randn(1, 17, 3, 4)
    x = x.transpose(1, 2) if heads_first else x
    torch.testing.assert_close(norm(x), x * norm.weight)
    assert tiles == [21, 21, 9]
