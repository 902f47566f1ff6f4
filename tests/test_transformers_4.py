"""What a saved model tells transformers 4, and that transformers 5 reads the same with it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Phi3Config

from lrk.transformers_4 import make_readable
from studies.tiny import prose, train_tokenizer

LLAMA_3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# All that `lrk.rope_scaling` says of divisors that no other type has.
CLIPPED = {
    "factor": 4.0,
    "short_factor": [1.0] * 63 + [2.0**40],
    "long_factor": [1.0] * 63 + [2.0**40],
    "original_max_position_embeddings": 64,
    "attention_factor": 1.0,
    "short_mscale": 1.0,
    "long_mscale": 1.0,
}


def content(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("rope_type", "scaling"),
    [
        ("default", {}),
        ("linear", {"factor": 4.0}),
        ("llama3", LLAMA_3),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 64}),
        ("longrope", CLIPPED),
    ],
)
def test_the_rope_has_its_old_names_and_transformers_5_reads_the_same(tmp_path, rope_type, scaling):
    parameters = {"rope_type": rope_type, "rope_theta": 1_015_580.0, **scaling}
    LlamaConfig(rope_parameters=dict(parameters)).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert make_readable(tmp_path) is None
    config = content(tmp_path / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1_015_580.0
    wanted = {"rope_type": rope_type, **scaling} if scaling else None
    assert config.get("rope_scaling") == wanted
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before


def test_transformers_5_computes_the_same(tmp_path):
    torch.manual_seed(0)
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA_3}
    shape = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, num_attention_heads=4, rope_parameters=parameters)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokens = torch.arange(200)[None] % 48
    before = LlamaForCausalLM.from_pretrained(tmp_path)(tokens).logits
    make_readable(tmp_path)
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(tokens).logits, before)


def test_parameters_of_each_layer_type_are_left(tmp_path):
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    config = {"model_type": "gemma3_text", "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "(of type 'gemma3_text')" in make_readable(tmp_path)
    assert content(tmp_path / "config.json") == config


def test_what_transformers_4_cannot_read_is_left_and_said(tmp_path):
    stretched = {"rope_type": "longrope", "rope_theta": 1e4, **CLIPPED}
    Phi3Config(
        rope_parameters=stretched, max_position_embeddings=256, hidden_size=4096
    ).save_pretrained(tmp_path)
    before = content(tmp_path / "config.json")
    assert "transformers 4 does not see the RoPE of this model (of type 'phi3')" in (
        make_readable(tmp_path)
    )
    assert content(tmp_path / "config.json") == before
    # One that has another base alone is read.
    Phi3Config(rope_parameters={"rope_type": "default", "rope_theta": 5e5}).save_pretrained(
        tmp_path
    )
    assert make_readable(tmp_path) is None
    assert content(tmp_path / "config.json")["rope_theta"] == 5e5


def test_the_tokenizer_has_a_class_and_names_that_both_know(tmp_path):
    tokenizer = train_tokenizer([prose(50, 0)], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    tokenizer.save_pretrained(tmp_path)
    make_readable(tmp_path)
    saved = content(tmp_path / "tokenizer_config.json")
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert saved["additional_special_tokens"] == ["<x>"]
    # transformers 4 takes it for a mapping.
    assert not isinstance(saved.get("extra_special_tokens"), list)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.all_special_tokens == tokenizer.all_special_tokens
    text = "The pass was <x> closed.<end>"
    assert loaded(text).input_ids == tokenizer(text).input_ids


def test_a_folder_without_them_is_left(tmp_path):
    make_readable(tmp_path)
    assert not list(tmp_path.iterdir())
