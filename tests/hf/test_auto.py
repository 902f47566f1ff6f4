"""`AutoLrkModelForCausalLM`: as `AutoModelForCausalLM`, then patched."""

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import lrk
from lrk.hf.backends import BACKENDS

INPUT_IDS = torch.arange(2, 22).view(2, 10)


def classes(model) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.support("AutoLrkModelForCausalLM")
def test_from_pretrained(stock, tmp_path):
    experts = hasattr(stock.config, "num_experts_per_tok")  # whose products know no float64
    dtype = torch.float32 if experts else torch.float64
    stock.save_pretrained(tmp_path)
    loaded = lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    expected = stock.eval().to(dtype)(INPUT_IDS).logits
    assert loaded.dtype == dtype
    assert not loaded.training
    torch.testing.assert_close(loaded(INPUT_IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert classes(loaded) == classes(lrk.patch(stock))


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_arguments_reach_transformers(llama, tmp_path, dtype):
    llama.bfloat16().save_pretrained(tmp_path / "inner")
    model, info = lrk.AutoLrkModelForCausalLM.from_pretrained(
        tmp_path, subfolder="inner", dtype=dtype, cross_entropy=False, output_loading_info=True
    )
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert classes(model) == classes(lrk.patch(llama, cross_entropy=False))


def test_a_given_config_is_used(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    llama.config.num_hidden_layers = 1
    loaded = lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path, config=llama.config)
    assert len(loaded.model.layers) == 1


def test_the_folder_of_an_adapter(llama, tmp_path):
    llama.save_pretrained(tmp_path / "base")
    base = type(llama).from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert loaded.config._attn_implementation == "lrk"
    torch.testing.assert_close(loaded(INPUT_IDS).logits, adapted(INPUT_IDS).logits)


def test_from_config(llama):
    options = {"rope": False, "attention": False}
    made = lrk.AutoLrkModelForCausalLM.from_config(llama.config, dtype=torch.bfloat16, **options)
    assert made.dtype == torch.bfloat16
    assert classes(made) == classes(lrk.patch(llama, **options))


def test_unsupported_types_are_refused_before_weights_are_read(tmp_path):
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    supported = r"of model type 'gpt2'; supported are gemma2, .*, smollm3$"
    with pytest.raises(ValueError, match=rf"pretrained_model_name_or_path '.*' is {supported}"):
        lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"config is a GPT2Config {supported}"):
        lrk.AutoLrkModelForCausalLM.from_config(config)


def test_attention_dropout_is_refused_before_weights_are_read(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"config\.attention_dropout is 0\.1; the lrk attention"):
        lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path, attention_dropout=0.1)


def test_a_request_that_would_be_overridden_is_refused(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    auto = lrk.AutoLrkModelForCausalLM
    for requested in ("eager", "sdpa"):
        for make in (auto.from_pretrained, auto.from_config):
            given = tmp_path if make == auto.from_pretrained else llama.config
            with pytest.raises(ValueError, match=f"attn_implementation is '{requested}', which"):
                make(given, attn_implementation=requested)
    for agreed, attention in (("sdpa", "sdpa"), ("lrk", True), ("eager", False)):
        loaded = auto.from_pretrained(tmp_path, attn_implementation=agreed, attention=attention)
        assert loaded.config._attn_implementation == BACKENDS.get(agreed, agreed)
