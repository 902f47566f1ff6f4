import copy

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import lrk

INPUT_IDS = torch.arange(2, 22).view(2, 10)


def classes(model):
    return [type(module) for module in model.modules()]


def state(model):
    """Everything that a patch could disturb: identities, classes and attributes of all modules."""
    return [
        (id(module), type(module), {name: id(value) for name, value in vars(module).items()})
        for module in model.modules()
    ]


def test_unpatch_restores_the_identical_objects(stock):
    stock(INPUT_IDS)
    before, attention = state(stock), stock.config._attn_implementation
    parameters = [id(parameter) for parameter in stock.parameters()]
    assert lrk.patch(stock) is stock
    assert classes(stock) != [kind for _, kind, _ in before]
    assert stock.config._attn_implementation == "lrk"
    stock(INPUT_IDS, labels=INPUT_IDS)
    assert lrk.unpatch(stock) is stock
    assert state(stock) == before
    assert [id(parameter) for parameter in stock.parameters()] == parameters
    assert stock.config._attn_implementation == attention


def test_second_model_is_untouched(llama):
    other = copy.deepcopy(llama)
    before, expected = state(other), other(INPUT_IDS).logits
    lrk.patch(llama)
    assert state(other) == before
    assert torch.equal(other(INPUT_IDS).logits, expected)
    assert other.config._attn_implementation == "sdpa"


def test_patch_is_idempotent_and_the_last_choice_holds(llama):
    stock_classes = classes(llama)
    lrk.patch(llama)
    all_parts = classes(llama)
    lrk.patch(llama)
    assert classes(llama) == all_parts
    lrk.patch(llama, rope=False, attention=False, cross_entropy=False)
    changed = [i for i, kind in enumerate(classes(llama)) if kind is not stock_classes[i]]
    assert changed == [stock_classes.index(type(lrk.unpatch(llama).model))]
    lrk.unpatch(llama)
    assert classes(llama) == stock_classes
    assert llama.config._attn_implementation == "sdpa"


def test_context_manager_unpatches_after_an_error(llama):
    before = classes(llama)
    with pytest.raises(RuntimeError, match="inside"), lrk.patched(llama):
        raise RuntimeError("inside")
    assert classes(llama) == before


def test_copies_and_checkpoints_of_a_patched_model(llama, tmp_path):
    lrk.patch(llama)
    expected = llama(INPUT_IDS).logits
    assert torch.equal(copy.deepcopy(llama)(INPUT_IDS).logits, expected)
    llama.save_pretrained(tmp_path)
    assert '"LlamaForCausalLM"' in (tmp_path / "config.json").read_text()
    reloaded = type(lrk.unpatch(llama)).from_pretrained(tmp_path)
    assert type(reloaded).__module__ == "transformers.models.llama.modeling_llama"
    torch.testing.assert_close(reloaded(INPUT_IDS).logits, expected)


def test_unsupported_models_are_named_with_those_supported():
    for model in (
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11)),
        BertModel(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2)),
        torch.nn.Linear(2, 2),
    ):
        with pytest.raises(
            ValueError, match=r"model is a \w+ of .* supported are llama, mistral, qwen2"
        ):
            lrk.patch(model)


def test_attention_dropout_is_refused(llama):
    llama.config.attention_dropout = 0.1
    before = classes(llama)
    with pytest.raises(ValueError, match=r"attention_dropout is 0\.1; the lrk attention has none"):
        lrk.patch(llama)
    assert classes(llama) == before
    lrk.patch(llama, attention=False)


def test_other_losses_are_refused(llama):
    lrk.patch(llama)
    llama.lm_head = torch.nn.Sequential(llama.lm_head)
    with pytest.raises(ValueError, match=r"lm_head is a Sequential; lrk's loss needs"):
        llama(INPUT_IDS, labels=INPUT_IDS)
    llama.loss_function = lambda **kwargs: None
    with pytest.raises(ValueError, match=r"lrk fuses transformers' ForCausalLMLoss only"):
        llama(INPUT_IDS, labels=INPUT_IDS)


def test_labels_outside_the_vocabulary_are_named(llama):
    lrk.patch(llama)
    with pytest.raises(ValueError, match="labels"):
        llama(INPUT_IDS, labels=INPUT_IDS + 60)
