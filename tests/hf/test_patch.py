import copy
import inspect

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


def test_unsupported_models_are_named_with_those_supported():
    for model in (
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11)),
        BertModel(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2)),
        torch.nn.Linear(2, 2),
    ):
        with pytest.raises(
            ValueError, match=r"model is a \w+ of .* supported are gemma2, .*, smollm3$"
        ):
            lrk.patch(model)


def test_weights_of_the_config_are_refused(llama):
    llama.set_attn_implementation("eager")
    llama.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions is True; the lrk attention gives none"):
        lrk.patch(llama)
    assert len(lrk.patch(llama, attention=False)(INPUT_IDS).attentions) == 2


@pytest.mark.parametrize("module", ["", "model"])
def test_signatures_name_what_the_stock_ones_name(llama, module):
    """transformers looks there for what a model takes, `inputs_embeds` among others."""
    stock = inspect.signature(llama.get_submodule(module).forward).parameters
    ours = inspect.signature(lrk.patch(llama).get_submodule(module).forward).parameters
    assert list(stock) == [name for name in ours if name in stock]
    assert stock["kwargs"].annotation == ours["kwargs"].annotation


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
    with pytest.raises(ValueError, match=r"lm_head is a torch\.\S+Sequential; lrk's loss needs"):
        llama(INPUT_IDS, labels=INPUT_IDS)
    llama.loss_function = lambda **kwargs: None
    with pytest.raises(ValueError, match=r"lrk fuses transformers' ForCausalLMLoss only"):
        llama(INPUT_IDS, labels=INPUT_IDS)


def test_labels_outside_the_vocabulary_are_named(llama):
    lrk.patch(llama)
    with pytest.raises(ValueError, match="labels"):
        llama(INPUT_IDS, labels=INPUT_IDS + 60)


def test_a_forward_that_is_not_the_stock_one_is_not_replaced(llama):
    class Scaled(type(llama)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    llama.__class__ = Scaled
    before = classes(llama)
    with pytest.raises(
        ValueError,
        match=r"model is a Scaled, whose forward is not that of transformers' LlamaForCausalLM",
    ):
        lrk.patch(llama)
    assert classes(llama) == before
    lrk.patch(llama, cross_entropy=False)
    assert type(llama) is Scaled
    assert llama.config._attn_implementation == "lrk"


def test_a_subclass_with_the_stock_forward_is_patched(llama):
    class Named(type(llama)):
        pass

    llama.__class__ = Named
    assert lrk.patch(llama)(INPUT_IDS, labels=INPUT_IDS).logits is None
    assert isinstance(llama, Named)
    assert type(llama).__name__ == "Named"
    assert type(lrk.unpatch(llama)) is Named


def test_models_of_other_classes_are_refused(llama):
    class Foreign(torch.nn.Module):
        config = llama.config

    with pytest.raises(ValueError, match="model is a Foreign without a LlamaModel of transformers"):
        lrk.patch(Foreign())


def test_classes_derived_after_the_patch_are_left_to_who_derived_them(llama):
    lrk.patch(llama)
    llama.__class__ = type("FSDPLlamaForCausalLM", (type(llama),), {})
    before = classes(llama)
    for change in (lrk.patch, lrk.unpatch):
        with pytest.raises(ValueError, match="FSDPLlamaForCausalLM was derived from a patched"):
            change(llama)
    assert classes(llama) == before


def test_training_after_a_first_forward_in_inference_mode(llama):
    lrk.patch(llama)
    del llama.model.rotary_emb._lrk_increments
    with torch.inference_mode():
        llama(INPUT_IDS)
    llama(INPUT_IDS, labels=INPUT_IDS).loss.backward()


def test_hidden_states_and_attentions_are_recorded(llama):
    llama.set_attn_implementation("eager")
    expected = llama(INPUT_IDS, output_hidden_states=True, output_attentions=True)
    lrk.patch(llama, attention=False)
    output = llama(INPUT_IDS, output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "attentions"):
        for ours, theirs in zip(output[name], expected[name], strict=True):
            torch.testing.assert_close(ours, theirs)
