"""patch, unpatch and set_attn_implementation in any order, any number of times."""

import copy
import random

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.llama import modeling_llama

import lrk

INPUT_IDS = torch.arange(2, 22).view(2, 10)
BACKENDS = ("eager", "sdpa", "lrk")


def state(model):
    """Identities, classes and attributes of all modules."""
    return [
        (id(module), type(module), {name: id(value) for name, value in vars(module).items()})
        for module in model.modules()
    ]


def transformers_state():
    """What a patch must not touch: the functions of the stock classes, the registries."""
    names = ("LlamaModel", "LlamaForCausalLM", "LlamaAttention", "LlamaRotaryEmbedding")
    kinds = [getattr(modeling_llama, name) for name in names]
    functions = [vars(kind).get(name) for kind in kinds for name in ("__init__", "forward")]
    functions += [modeling_llama.apply_rotary_pos_emb, modeling_llama.eager_attention_forward]
    for registry in (AttentionInterface, AttentionMaskInterface):
        functions += [registry._global_mapping[name] for name in ("sdpa", "flash_attention_2")]
    return [id(function) for function in functions]


def logits(model):
    with torch.no_grad():
        return model(INPUT_IDS).logits


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wraps_base_model", [False, True])
def test_any_sequence_ends_where_it_began(llama, seed, wraps_base_model):
    rng = random.Random(seed)
    other = copy.deepcopy(llama)
    model = llama.model if wraps_base_model else llama
    start, other_start, functions = state(llama), state(other), transformers_state()
    expected, stock_attention, overridden = logits(llama), "sdpa", False
    for _ in range(30):
        action = rng.choice(["patch", "unpatch", "attention", "context", "copy"])
        if action == "patch":
            parts = {name: rng.random() < 0.5 for name in ("rope", "attention", "cross_entropy")}
            assert lrk.patch(model, **parts) is model
            overridden = parts["attention"]
            assert llama.config._attn_implementation == ("lrk" if overridden else stock_attention)
        elif action == "unpatch":
            lrk.unpatch(model)
            overridden = False
            assert state(llama) == start
            assert llama.config._attn_implementation == stock_attention
        elif action == "attention":
            backend = rng.choice(BACKENDS)
            llama.set_attn_implementation(backend)
            if not overridden:
                stock_attention = backend
        elif action == "context":
            with lrk.patched(model):
                torch.testing.assert_close(logits(llama), expected)
            overridden = False
        else:
            torch.testing.assert_close(logits(copy.deepcopy(llama)), expected)
        torch.testing.assert_close(logits(llama), expected)
    lrk.unpatch(llama).set_attn_implementation("sdpa")
    assert state(llama) == start
    assert state(other) == other_start
    assert transformers_state() == functions
    assert torch.equal(logits(llama), expected)
    assert torch.equal(logits(other), expected)


@pytest.mark.support("set_attn_implementation after patch")
def test_attention_back_and_forth(stock):
    expected, attention = logits(stock), stock.config._attn_implementation
    lrk.patch(stock)
    for backend in ("eager", "lrk", attention, "lrk"):
        stock.set_attn_implementation(backend)
        torch.testing.assert_close(logits(stock), expected)
    assert lrk.unpatch(stock).config._attn_implementation == attention
