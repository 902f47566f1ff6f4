"""`apply_lrk_to_*`: models that are made afterwards come patched, others are untouched."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2

import lrk
from lrk.hf.backends import own_attention

INPUT_IDS = torch.arange(2, 22).view(2, 10)
STOCK_CLASSES = [
    modeling_llama.LlamaModel,
    modeling_llama.LlamaForCausalLM,
    modeling_mistral.MistralModel,
    modeling_mistral.MistralForCausalLM,
    modeling_qwen2.Qwen2Model,
    modeling_qwen2.Qwen2ForCausalLM,
]
APPLY = {
    "llama": lrk.apply_lrk_to_llama,
    "mistral": lrk.apply_lrk_to_mistral,
    "qwen2": lrk.apply_lrk_to_qwen2,
}


def inits() -> list[int]:
    return [id(kind.__init__) for kind in STOCK_CLASSES]


def classes(model) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.fixture(autouse=True)
def reverted():
    before = inits()
    yield
    lrk.revert_lrk()
    assert inits() == before


@pytest.mark.support("apply_lrk_to_*, then from_pretrained")
def test_models_loaded_afterwards_are_patched(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    expected = classes(lrk.patch(copy.deepcopy(stock)))
    before = classes(stock)
    attention = stock.config._attn_implementation
    lrk.apply_lrk_to(stock.config.model_type)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert classes(loaded) == expected
    assert classes(stock) == before
    assert loaded.config._attn_implementation == "lrk"
    assert loaded.train()(INPUT_IDS, labels=INPUT_IDS).logits is None
    loaded.eval()
    torch.testing.assert_close(loaded(INPUT_IDS).logits, stock(INPUT_IDS).logits)
    assert classes(lrk.unpatch(loaded)) == before
    assert loaded.config._attn_implementation == own_attention(loaded)
    loaded.set_attn_implementation(attention)
    assert torch.equal(loaded(INPUT_IDS).logits, stock(INPUT_IDS).logits)


@pytest.mark.parametrize("order", [("llama", "mistral", "qwen2"), ("qwen2", "mistral", "llama")])
def test_revert_restores_the_identical_functions(order):
    before = inits()
    for model_type in (*order, *order):
        APPLY[model_type]()
    assert all(now != then for now, then in zip(inits(), before, strict=True))
    lrk.revert_lrk()
    assert inits() == before
    lrk.revert_lrk()
    assert inits() == before


@pytest.mark.parametrize("first", [True, False])
def test_the_last_options_hold(llama, first):
    for rope in (first, not first):
        lrk.apply_lrk_to_llama(rope=rope, attention=False)
    made = type(llama)(llama.config)
    assert classes(made) == classes(lrk.patch(llama, rope=not first, attention=False))
    assert made.config._attn_implementation == "sdpa"


def test_after_revert_new_models_are_stock(llama):
    lrk.apply_lrk_to_llama()
    patched = type(llama)(copy.deepcopy(llama.config))
    lrk.revert_lrk()
    assert classes(type(llama)(copy.deepcopy(llama.config))) == classes(llama)
    assert classes(patched) != classes(llama)
    assert classes(lrk.unpatch(patched)) == classes(llama)


def test_other_architectures_are_untouched(llama):
    lrk.apply_lrk_to_mistral()
    assert classes(type(llama)(llama.config)) == classes(llama)


@pytest.mark.parametrize("requested", ["sdpa", "lrk"])
def test_the_requested_attention_is_what_unpatch_restores(llama, tmp_path, requested):
    llama.save_pretrained(tmp_path)
    lrk.apply_lrk_to_llama()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=requested)
    assert loaded.config._attn_implementation == "lrk"
    assert lrk.unpatch(loaded).config._attn_implementation == requested


def test_a_request_that_would_be_overridden_is_refused(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    options = {"attn_implementation": "eager"}
    sentence = "attn_implementation is 'eager', which attention={} would replace: leave it out"
    lrk.apply_lrk_to_llama()
    for load in (AutoModelForCausalLM, LlamaForSequenceClassification):
        with pytest.raises(ValueError, match=sentence.format(True)):
            load.from_pretrained(tmp_path, **options)
    lrk.apply_lrk_to_llama(attention="sdpa")
    with pytest.raises(ValueError, match=sentence.format("'sdpa'")):
        AutoModelForCausalLM.from_pretrained(tmp_path, **options)
    llama.save_pretrained(tmp_path)
    lrk.apply_lrk_to_llama(attention=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
    assert loaded.config._attn_implementation == "eager"
    assert loaded(INPUT_IDS, output_attentions=True).attentions[0].shape[1] == 6


def test_the_base_model_is_patched_under_any_head(llama):
    lrk.apply_lrk_to_llama()
    model = LlamaForSequenceClassification(llama.config)
    assert model.config._attn_implementation == "lrk"
    assert classes(model.model) == classes(lrk.patch(copy.deepcopy(llama)).model)


def test_attention_dropout_is_refused_before_weights_are_read(llama, tmp_path):
    llama.config.attention_dropout = 0.1
    llama.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    lrk.apply_lrk_to_llama()
    with pytest.raises(ValueError, match=r"config\.attention_dropout is 0\.1; the lrk attention"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_type_that_is_not_supported():
    with pytest.raises(ValueError, match="model_type is 'gpt2'; it must be one of gemma2, "):
        lrk.apply_lrk_to("gpt2")
