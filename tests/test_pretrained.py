"""What is loaded of a model that somebody else wrote, or damaged."""

import json

import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from lrk.device_map import input_device
from lrk.pretrained import (
    check_config,
    fingerprint_weights,
    load_auto,
    load_weights,
)
from lrk.weight_index import INDEX
from studies.tiny import write_model


@pytest.fixture
def model(tmp_path):
    write_model(tmp_path / "model")
    return tmp_path / "model"


def change(model, **values):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0},
        {"hidden_size": -32},
        {"hidden_act": "gelo"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": "many"}},
        {"vocab_size": [320]},
        {"num_hidden_layers": None},
        {"dtype": "float99"},
    ],
    ids=str,
)
def test_a_config_that_makes_no_model_is_one_sentence(model, values):
    change(model, **values)
    with pytest.raises(
        ValueError, match=r"model '.*/model' (cannot be loaded|has a config)"
    ) as error:
        check_config("model", str(model), load_auto(AutoConfig, "model", str(model), None))
    assert "\n" not in str(error.value)


def test_a_config_that_makes_one(model):
    config = load_auto(AutoConfig, "model", str(model), None)
    before = config.to_dict()
    check_config("model", str(model), config)
    assert config.to_dict() == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {}}', "3"])
def test_a_damaged_tokenizer_is_one_sentence(model, text):
    (model / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"model '.*/model' cannot be loaded: ") as error:
        load_auto(AutoTokenizer, "model", str(model), None)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_loads_and_does_not_encode_is_one_sentence(model):
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["model_max_length"] = []
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model '.*/model' cannot be loaded: TypeError: "):
        load_auto(AutoTokenizer, "model", str(model), None)


def test_an_index_that_leads_out_of_the_folder_is_not_followed(model):
    (model / "model.safetensors").rename(model.parent / "victim.safetensors")
    weight_map = {"model.norm.weight": "../victim.safetensors"}
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"model '.*' cannot be loaded: .*which is no name of a"):
        load_weights("model", str(model), None)


@pytest.mark.parametrize("is_tied", [False, True])
def test_weights_that_lie_elsewhere_have_the_same_fingerprint(tmp_path, is_tied):
    if is_tied and Version(transformers.__version__) < Version("5.17"):
        pytest.skip("it brings the tied embedding in the place of every weight on disk")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=64, num_hidden_layers=2, tie_word_embeddings=is_tied, bos_token_id=None, **sizes
    )
    plain = AutoModelForCausalLM.from_config(config)
    plain.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "disk", "model.layers.0": "disk", "model.layers.1": "cpu"}
    places |= {"model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"}
    options = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    spread = load_weights("model", str(tmp_path), None, **options)
    assert spread.get_input_embeddings().weight.is_meta
    assert input_device(spread) == input_device(plain) == torch.device("cpu")
    assert fingerprint_weights(spread) == fingerprint_weights(plain)
    spread(torch.arange(8)[None])  # after which tied weights are two objects
    assert fingerprint_weights(spread) == fingerprint_weights(plain)
    with torch.no_grad():
        plain.model.layers[0].mlp.up_proj.weight.mul_(2)
    assert fingerprint_weights(spread) != fingerprint_weights(plain)


def test_a_gated_model_says_how_to_log_in(monkeypatch):
    def refused(*_, **__):
        cause = GatedRepoError.__new__(GatedRepoError)  # its own wants a response of the hub
        raise OSError("You are trying to access a gated repo.\nMake sure to have access") from cause

    monkeypatch.setattr(AutoConfig, "from_pretrained", refused)
    with pytest.raises(ValueError, match="model 'meta-llama/X' cannot be loaded") as error:
        load_auto(AutoConfig, "model", "meta-llama/X", None)
    assert str(error.value).endswith("then run `hf auth login`.")
