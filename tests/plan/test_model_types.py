"""Plans of every model type: exact between groups of layers, and right or refused in a sentence."""

import dataclasses
from typing import Any

import pytest
from transformers import AutoConfig, PretrainedConfig

from lrk.hf import SUPPORTED
from lrk.layer_kinds import layer_kinds, period
from lrk.plan import Settings, plan
from lrk.plan.check import compare, settings_of
from lrk.plan.planner import extrapolated
from lrk.plan.settings import STOCK
from lrk.plan.step import trace

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
}
EXPERTS = {
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
LENGTH = 48


def tiny(model_type: str, **changes: Any) -> PretrainedConfig:
    config = AutoConfig.for_model(model_type, **SHAPE | EXPERTS.get(model_type, {}) | changes)
    if getattr(config, "sliding_window", None):
        config.sliding_window = 16
    return config


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_plan_is_what_the_allocator_records(model_type):
    config = tiny(model_type)
    settings = settings_of("lrk", length=160, gpu="cpu")
    if model_type in EXPERTS:
        settings = dataclasses.replace(settings, dtype="bfloat16")
    if model_type == "gemma2":
        with pytest.raises(ValueError, match="gpu is 'cpu', and model type 'gemma2' has a softcap"):
            plan("tiny", config, settings)
        config.attn_logit_softcapping = None
    assert abs(compare("tiny", config, settings).error) < 0.02


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        pytest.param(tiny("gpt_oss", num_hidden_layers=11), {}, id="windows, and one left over"),
        pytest.param(
            tiny("smollm3", num_hidden_layers=10, no_rope_layers=[1, 0] * 5),
            {"activation_checkpointing": False},
            id="no RoPE",
        ),
        pytest.param(
            tiny("gemma2", num_hidden_layers=10),
            {"layers_per_checkpoint": 2, "tile_tokens": 16},
            id="a checkpoint for two",
        ),
    ],
)
def test_extrapolation_of_layers_that_differ_is_exact(config, changes):
    """Of five groups of two layers."""
    assert period(layer_kinds(config)) == 2
    settings = dataclasses.replace(Settings(length=LENGTH), **changes)
    found, full = extrapolated(config, settings), trace(config, settings)
    assert found.flops == full.flops
    if settings.layers_per_checkpoint == 1:
        assert found.usages == full.usages
    else:
        assert max(usage.total for usage in found.usages) == max(
            usage.total for usage in full.usages
        )


def test_sliding_windows_spare_products():
    """Of a window of 16 in 48 tokens, in 3 of 4 layers of OLMo 3."""
    windowed, whole = (
        plan("tiny", tiny("olmo3", num_hidden_layers=4, layer_types=types), Settings(LENGTH)).flops
        for types in (None, ["full_attention"] * 4)
    )
    spared = 48 * 49 // 2 - (16 * 17 // 2 + 32 * 16)
    # 2 products forward, 2 again and 5 backward, of 4 heads of 16.
    assert whole - windowed == 3 * 2 * 9 * spared * 64


def test_products_of_experts():
    """Each token meets 2 of 4: 3 products forward, again and twice backward, and the router's."""
    config = tiny("mixtral", num_hidden_layers=1)
    one, two = (
        plan("tiny", tiny("mixtral", num_experts_per_tok=count, num_hidden_layers=1), settings)
        for settings in (Settings(LENGTH),)
        for count in (1, 2)
    )
    assert two.flops - one.flops == 4 * 2 * 3 * LENGTH * config.hidden_size * 96


@pytest.mark.parametrize(
    ("model_type", "changes", "sentence"),
    [
        ("mixtral", {"dtype": "float32"}, "dtype is float32, and model type 'mixtral' has experts"),
        (
            "olmo3",
            {"implementation": STOCK},
            "implementation is 'stock', which takes PyTorch's attention; that has no windows, so "
            "that transformers makes a mask of all pairs for the model's sliding window of 16",
        ),
        ("mistral", {"attention": "sdpa"}, "attention is 'sdpa', which takes PyTorch's attention"),
        ("gemma2", {"attention": "sdpa"}, "model type 'gemma2' has a softcap or sinks, and that"),
        ("gpt_oss", {"implementation": STOCK}, "model type 'gpt_oss' has a softcap or sinks"),
        ("gpt_oss", {"attention": "sdpa"}, "attention is 'sdpa', which has no sinks, and model"),
        ("gpt_oss", {"attention": "flash_attention_2"}, "'flash_attention_2', which has no sinks"),
    ],
)
def test_what_would_be_counted_wrongly_is_refused(model_type, changes, sentence):
    settings = dataclasses.replace(Settings(length=LENGTH), **changes)
    with pytest.raises(ValueError, match=sentence):
        plan("tiny", tiny(model_type), settings)


def test_a_window_that_is_longer_than_the_text_needs_no_mask():
    plan("tiny", tiny("olmo3"), Settings(length=16, implementation=STOCK))


def test_other_model_types_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="model type 'qwen3_next'; three of four of its layers"):
        plan("tiny", AutoConfig.for_model("qwen3_next"), Settings(length=LENGTH))
