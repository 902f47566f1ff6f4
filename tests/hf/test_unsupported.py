"""The reasons against model types are those of the installed transformers."""

import importlib
import inspect

import pytest
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from lrk.hf import SUPPORTED
from lrk.hf.architectures import architecture_of
from lrk.hf.unsupported import REASONS

# What is written in the model's own file.
WRITTEN = {
    "cohere2": (
        "if self.sliding_window is not None:\n            query_states, key_states = apply",
    ),
    "exaone4": ("if self.sliding_window is None or self.is_sliding:",),
    "falcon_h1": ("class FalconH1Mixer",),
    "gemma3n_text": ("kv_shared",),
    "gemma4_text": ("kv_shared",),
    "glm4_moe": ("query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos",),
    "lfm2": ("class Lfm2ShortConv",),
    "llama4_text": (
        "create_chunked_causal_mask",
        "positions = torch.arange(hidden_states",
    ),
    "minimax": ("class MiniMaxLightningAttention",),
    "phimoe": ("create_sliding_window_causal_mask", "long_mscale"),
    **dict.fromkeys(("bamba", "granitemoehybrid", "jamba", "nemotron_h"), ("mamba",)),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), ("qk_rope_head_dim", "v_head_dim")),
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), ("GatedDeltaNet",)),
}


def source_of(model_type: str) -> str:
    package = model_type.removesuffix("_text")
    return inspect.getsource(
        importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    )


@pytest.mark.parametrize("model_type", REASONS)
def test_what_a_reason_names_is_there(model_type):
    assert model_type in CONFIG_MAPPING_NAMES
    assert model_type not in SUPPORTED
    source = source_of(model_type)
    assert [words for words in WRITTEN[model_type] if words not in source] == []


@pytest.mark.parametrize("model_type", ["qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"])
def test_three_of_four_layers_are_linear(model_type):
    types = AutoConfig.for_model(model_type).layer_types
    assert types.count("linear_attention") == 3 * types.count("full_attention")


@pytest.mark.parametrize("model_type", ["jamba", "nemotron_h"])
def test_their_attention_has_no_rope(model_type):
    """The function is in the file, and nobody calls it."""
    assert "= apply_rotary_pos_emb(" not in source_of(model_type)


def test_phimoe_hands_its_window_to_nobody():
    assert "sliding_window=" not in source_of("phimoe")


def test_the_reason_is_in_the_sentence():
    config = AutoConfig.for_model("llama4_text")
    with pytest.raises(ValueError, match="model type 'llama4_text'; its chunks of attention and"):
        architecture_of(config, "the config is")
