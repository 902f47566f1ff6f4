import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.positions import scaled_rope_theta
from lrk.train import extend


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


def test_a_patched_model_is_extended_alike():
    torch.manual_seed(0)
    model = tiny()
    tokens = torch.arange(10)[None]
    truth = extend(model, 256)(tokens).logits
    again = tiny()
    again.load_state_dict(model.state_dict())
    patched = extend(lrk.patch(again), 256)
    torch.testing.assert_close(patched(tokens).logits, truth)


def test_a_chosen_base_is_taken():
    model = extend(tiny(), 256, rope_theta=123.0)
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


@pytest.mark.parametrize("rope_type", ["dynamic", "yarn"])
def test_types_whose_frequencies_follow_the_window_are_refused(rope_type):
    model = tiny(rope_type=rope_type, factor=2.0)
    with pytest.raises(ValueError, match=f"rope_type is '{rope_type}', whose frequencies change"):
        extend(model, 256)
