"""What is loaded of a model that somebody else wrote, or damaged."""

import json

import pytest
from transformers import AutoConfig, AutoTokenizer

from lrk.pretrained import check_config, load_auto, load_weights
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
