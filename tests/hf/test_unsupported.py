"""The reasons against model types are those of the installed transformers."""

import importlib
import inspect

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import lrk
from lrk.hf import SUPPORTED
from lrk.hf.architectures import architecture_of
from lrk.hf.unsupported import ATTENTION_ALONE, REASONS

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


SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_model(model_type):
    usual = AutoConfig.for_model(model_type)
    names = usual.to_dict().keys() | usual.attribute_map.keys()
    shape = {name: value for name, value in SHAPE.items() if name in names}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # or attention is nearly uniform
            torch.nn.init.normal_(parameter, std=0.15)
    return model


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted(ATTENTION_ALONE & CONFIG_MAPPING_NAMES.keys()))
def test_the_attention_alone_gives_what_eager_gives(model_type):
    model = tiny_model(model_type)
    with pytest.raises(ValueError, match=f"'{model_type}'; .*; lrk's attention alone was tested"):
        lrk.patch(model)
    tokens = torch.randint(3, 60, (2, 24))
    real = torch.ones_like(tokens)
    real[0, :5] = 0
    skipped = torch.cat([torch.arange(10), 200 + torch.arange(14)]).expand(2, -1)
    documents = dict.fromkeys(
        ("cu_seq_lens_q", "cu_seq_lens_k"), torch.tensor([0, 10, 24], dtype=torch.int32)
    )
    restarted = torch.cat([torch.arange(10), torch.arange(14)])[None]
    # With a mask transformers makes no documents of skips.
    inputs = {"input_ids": tokens, "use_cache": False}
    stock = [
        model(**inputs).logits,
        model(**inputs, attention_mask=real).logits[real.bool()],
        model(**inputs, attention_mask=torch.ones_like(real), position_ids=skipped).logits,
        torch.cat([model(part).logits for part in tokens[:1].split([10, 14], dim=1)], dim=1),
    ]
    model.set_attn_implementation("lrk")
    ours = [
        model(**inputs).logits,
        model(**inputs, attention_mask=real).logits[real.bool()],
        model(**inputs, position_ids=skipped).logits,
        model(tokens[:1], position_ids=restarted, use_cache=False, **documents).logits,
    ]
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    # What is before the skip is seen behind it, at the distance that the positions say.
    edited = tokens.clone()
    edited[:, 0] = 61
    behind = model(input_ids=edited, use_cache=False, position_ids=skipped).logits[:, 10:]
    assert (behind - ours[2][:, 10:]).abs().max() > 1e-2
    assert (ours[0] - ours[2])[:, 10:].abs().max() > 1e-2


def test_what_has_a_patch_is_not_told_of_the_attention_alone():
    assert not ATTENTION_ALONE & set(SUPPORTED)
