"""What lrk relies on in transformers' forwards, looked at in the installed release."""

import inspect

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

import lrk
from lrk.hf import SUPPORTED
from lrk.hf.architectures import architecture_of_type
from lrk.hf.canary import tiny_config, tiny_model
from lrk.hf.causal_lm import LrkForCausalLM
from lrk.hf.logit_scale import logit_scale
from lrk.hf.mixed import mixed
from lrk.hf.rope import ROTATION, LrkAttention
from lrk.hf.stock_forward import check_names, global_of, rebound
from lrk.hf.tiles import LrkDecoderLayer

PRE = (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp"))
POST = (("self_attn", "post_attention_layernorm"), ("mlp", "post_feedforward_layernorm"))
BOTH = (
    ("input_layernorm", "self_attn", "post_attention_layernorm"),
    ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
)
HALVES = {
    "gemma2": BOTH,
    "gemma3_text": BOTH,
    "glm4": (
        ("input_layernorm", "self_attn", "post_self_attn_layernorm"),
        ("post_attention_layernorm", "mlp", "post_mlp_layernorm"),
    ),
    "olmo2": POST,
    "olmo3": POST,
    "phi3": (
        ("input_layernorm", "self_attn", "resid_attn_dropout"),
        ("post_attention_layernorm", "mlp", "resid_mlp_dropout"),
    ),
}
CAPS, DIVIDES = {"gemma2", "gemma3_text"}, {"granite"}
EXPERTS = {"gpt_oss", "mixtral", "qwen3_moe"}
INTERLEAVED = {"glm4"}


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_what_is_read_off_each_type(model_type):
    stock = architecture_of_type(model_type)
    layer = mixed(LrkDecoderLayer, stock.decoder_layer)
    assert (layer._lrk_first_half, layer._lrk_second_half) == HALVES.get(model_type, PRE)
    assert layer._lrk_scales_residuals == (model_type == "granite")
    causal_lm = mixed(LrkForCausalLM, stock.causal_lm)
    scale = logit_scale(causal_lm(tiny_config(model_type)))
    assert (scale.softcap is not None) == (model_type in CAPS)
    assert (scale.divisor is not None) == (model_type in DIVIDES)
    assert bool(causal_lm._lrk_balance) == (model_type in EXPERTS)
    attention = mixed(LrkAttention, stock.attention)
    turn = attention._lrk_forward.__globals__[ROTATION].__name__
    assert turn == ("_turn_pairs" if model_type in INTERLEAVED else "_turn_halves")


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_each_layer_rotates_once_where_it_has_rope(model_type, monkeypatch):
    """By lrk, at the positions that the model was given, and nowhere by transformers."""
    model = lrk.patch(tiny_model(tiny_config(model_type)).eval())
    seen = []

    def counted(q, k, position_ids, *others, **flags):
        seen.append(position_ids.clone())
        return rope(q, k, position_ids, *others, **flags)

    rope = lrk.hf.rope.rope
    monkeypatch.setattr(lrk.hf.rope, "rope", counted)
    stock = architecture_of_type(model_type)
    monkeypatch.setattr(f"{stock.attention.__module__}.{ROTATION}", None)
    positions = torch.tensor([[0, 3, 4, 9]])
    model(torch.tensor([[5, 6, 7, 8]]), position_ids=positions)
    rotating = [getattr(layer.self_attn, "use_rope", True) for layer in model.model.layers]
    assert len(seen) == sum(rotating) == (1 if model_type == "smollm3" else 2)
    assert all(torch.equal(each, positions) for each in seen)


def test_a_function_inside_is_another_and_the_class_keeps_its_own():
    def without(query, key, cos, sin, unsqueeze_dim=1):
        return query, key

    own = modeling_qwen3.apply_rotary_pos_emb
    forward = rebound(Qwen3Attention, apply_rotary_pos_emb=without)
    assert forward.__globals__[ROTATION] is without
    assert forward.__code__ is inspect.unwrap(Qwen3Attention.forward).__code__
    assert global_of(Qwen3Attention, ROTATION) is own


def test_a_forward_that_rotates_otherwise_is_refused(llama, monkeypatch):
    """As a release that renames the function would."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, cache=None):
        return self.o_proj(rotated(hidden_states)), None  # noqa: F821

    monkeypatch.setattr(LlamaAttention, "forward", forward)
    classes = [type(module) for module in llama.modules()]
    with pytest.raises(
        ValueError, match=r"LlamaAttention\.forward of transformers \S+ does not call apply_rotary"
    ):
        lrk.patch(llama)
    assert [type(module) for module in llama.modules()] == classes
    lrk.patch(llama, rope=False)  # replaces no attention


def test_a_rotation_of_other_pairs_is_refused(llama, monkeypatch):
    def rotation(q, k, cos, sin, unsqueeze_dim=1):
        return q.flip(-1) * sin, k

    monkeypatch.setattr(modeling_llama, ROTATION, rotation)
    with pytest.raises(ValueError, match="turns neither dimension j with j"):
        LrkAttention.over(LlamaAttention)


def test_a_forward_that_reads_more_is_refused():
    class Scaled(nn.Module):
        def forward(self, hidden_states):
            return self.mlp(hidden_states) * self.mlp_multiplier

    with pytest.raises(ValueError, match=r"Scaled\.forward .* reads mlp_multiplier, which lrk"):
        check_names(Scaled, ["mlp"])
    with pytest.raises(ValueError, match="does not call apply_rotary_pos_emb"):
        global_of(Scaled, ROTATION)


@pytest.mark.parametrize(
    "arguments", ["x, cos, sin, unsqueeze_dim", "q, k, *, cos, sin, unsqueeze_dim"]
)
def test_a_rotation_with_other_arguments_is_refused(arguments, monkeypatch):
    monkeypatch.setattr(modeling_llama, ROTATION, eval(f"lambda {arguments}: None"))
    with pytest.raises(ValueError, match="takes other arguments than q, k, cos, sin, un"):
        LrkAttention.over(LlamaAttention)


def test_heads_in_another_place_are_refused():
    q = torch.ones(1, 4, 4, 8)
    turn = mixed(LrkAttention, LlamaAttention)._lrk_forward.__globals__[ROTATION]
    with pytest.raises(ValueError, match="unsqueeze_dim is 2, for heads in another place"):
        turn(q, q, torch.arange(4)[None], (torch.ones(4, dtype=torch.int64), 1.0), unsqueeze_dim=2)
