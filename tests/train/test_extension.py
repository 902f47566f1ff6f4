import logging

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
)

import lrk
import lrk.decode
from lrk.positions import scaled_rope_theta
from lrk.rope_factors import RopeFactors
from lrk.rope_scaling import ROPE_SCALINGS, RopePlan
from lrk.train import extend

FACTORS = RopeFactors((1.0, 1.5, 3.0, 4.0))


def tiny(max_position_embeddings: int = 64, **rope) -> LlamaForCausalLM:
    parameters = {"rope_type": "default", "rope_theta": 10_000.0} | rope
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=max_position_embeddings,
            rope_parameters=parameters,
        )
    )


def test_the_base_is_scaled_in_the_config_and_in_the_model():
    model = extend(tiny(), 256)
    theta = scaled_rope_theta(10_000.0, 64, 256, 8)
    assert model.config.max_position_embeddings == 256
    assert model.config.rope_parameters["rope_theta"] == theta
    expected = theta ** (-torch.arange(0, 8, 2).double() / 8)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq.double(), expected)


def plan_of(name: str) -> RopePlan:
    return RopePlan(name, factors=FACTORS if name == "longrope" else None)


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_a_patched_model_is_extended_alike_before_and_after(name):
    torch.manual_seed(0)
    model = tiny()
    tokens = torch.arange(10)[None]
    positions = 5 * torch.arange(10)[None]
    as_it_is = model(tokens, position_ids=positions).logits
    weights = model.state_dict()
    truth = extend(model, 256, plan_of(name))(tokens, position_ids=positions).logits
    assert (truth - as_it_is).abs().max() > 1e-4

    def made(first, second):
        again = tiny()
        again.load_state_dict(weights)
        return second(first(again))(tokens, position_ids=positions).logits

    def longer(model):
        return extend(model, 256, plan_of(name))

    torch.testing.assert_close(made(lrk.patch, longer), truth)
    torch.testing.assert_close(made(longer, lrk.patch), truth)


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_a_second_extension_to_the_same_window_changes_nothing(name):
    model = extend(tiny(), 256, plan_of(name))
    before = model.config.to_dict()
    assert extend(model, 256, plan_of(name)).config.to_dict() == before


def test_a_plan_that_changes_nothing_is_named(caplog):
    extend(tiny(), 64, RopePlan("yarn"))
    (record,) = caplog.records
    assert record.getMessage() == (
        "rope_scaling 'yarn' changes nothing: the model has a window of 64 tokens already"
    )
    caplog.clear()
    extend(tiny(), 64)
    extend(tiny(), 64, RopePlan(theta=1e6))
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        extend(tiny(), 64, RopePlan("yarn"), original=tiny().config)
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_a_window_that_grows_ends_as_one_that_is_reached_at_once(name):
    original, plan = tiny().config, plan_of(name)
    at_once = extend(tiny(), 512, plan)
    grown = extend(extend(tiny(), 128, plan, original), 512, plan, original)
    assert grown.config.to_dict() == at_once.config.to_dict()
    assert grown.config.max_position_embeddings == 512
    of_both = (model.model.rotary_emb.inv_freq for model in (grown, at_once))
    assert torch.equal(*of_both)
    # A later stage in a window that is there already leaves all as it is.
    assert extend(grown, 128, plan, original).config.to_dict() == at_once.config.to_dict()


def test_the_base_of_a_stretch_of_a_stretch_is_another():
    """So the original is what stages stretch."""
    twice, at_once = extend(extend(tiny(), 128), 512), extend(tiny(), 512)
    bases = [model.config.rope_parameters["rope_theta"] for model in (twice, at_once)]
    assert bases[0] / 10_000 == pytest.approx((3 * 13) ** (8 / 6))
    assert bases[1] / 10_000 == pytest.approx(57 ** (8 / 6))


def test_a_chosen_base_is_that_of_the_stage_that_names_it():
    original = tiny().config
    grown = extend(tiny(), 128, RopePlan(theta=123.0), original)
    extend(grown, 512, RopePlan(theta=456.0), original)
    assert grown.config.rope_parameters["rope_theta"] == 456.0
    extend(grown, 512, RopePlan(theta=789.0), original)
    assert grown.config.rope_parameters["rope_theta"] == 789.0


def test_the_text_part_of_a_model_that_sees_is_extended():
    text = {
        "model_type": "ministral3",
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model("mistral3", text_config=text, vision_config=vision)
    model = AutoModelForImageTextToText.from_config(config)
    of = {name: buffer.clone() for name, buffer in model.named_buffers()}
    extend(model, 256, RopePlan("linear"))
    assert model.config.text_config.max_position_embeddings == 256
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, of[name])}
    assert changed == {
        "model.language_model.rotary_emb.inv_freq",
        "model.language_model.rotary_emb.original_inv_freq",
    }


def test_contrastive_decoding_takes_static_divisors():
    """Stock longrope asks for the length of a text; with one set of divisors nothing does."""
    model = lrk.patch(extend(tiny(), 256, plan_of("longrope")))
    with lrk.decode.pcd(model):
        model(torch.arange(10)[None])


def test_kinds_of_layers_are_extended_each_by_itself():
    config = AutoConfig.for_model(
        "gemma3_text",
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
        max_position_embeddings=64,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    old = {name: buffer.clone() for name, buffer in model.model.rotary_emb.named_buffers()}
    extend(model.to(torch.bfloat16), 256, RopePlan("linear"))
    new = dict(model.model.rotary_emb.named_buffers())
    assert torch.equal(new["sliding_attention_inv_freq"], old["sliding_attention_inv_freq"])
    assert torch.equal(new["full_attention_inv_freq"], old["full_attention_inv_freq"] / 4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_chosen_base_is_taken():
    model = extend(tiny(), 256, RopePlan(theta=123.0))
    assert model.config.rope_parameters["rope_theta"] == 123.0


@pytest.mark.parametrize("target", [32, 64])
def test_a_window_that_is_there_already_changes_nothing(target):
    model = extend(tiny(), target)
    assert model.config.max_position_embeddings == 64
    assert model.config.rope_parameters["rope_theta"] == 10_000.0


def test_llama3_keeps_its_original_window():
    model = extend(
        tiny(
            128,
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        256,
    )
    assert model.config.rope_parameters["original_max_position_embeddings"] == 32
    assert model.config.max_position_embeddings == 256


@pytest.mark.parametrize(
    ("rope_type", "said"), [("dynamic", {}), ("yarn", {"original_max_position_embeddings": 32})]
)
def test_types_whose_frequencies_follow_the_window_become_static(rope_type, said):
    model = extend(tiny(rope_type=rope_type, factor=2.0, **said), 256)
    kept = "default" if rope_type == "dynamic" else "longrope"
    assert model.config.rope_parameters["rope_type"] == kept
    positions = torch.arange(10)[None]
    tokens = torch.arange(10)[None]
    near = model(tokens, position_ids=positions).logits
    model(tokens, position_ids=positions + 240)
    assert torch.equal(model(tokens, position_ids=positions).logits, near)
