"""Which config a name stands for."""

import pytest
from huggingface_hub import constants

from lrk.plan import MODELS, configs, load_config


@pytest.mark.parametrize(
    ("name", "packaged"),
    [
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("mistralai/Ministral-3-8B-Base-2512", "ministral-3-8b"),
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("allenai/Olmo-3-1025-7B", "olmo-3-7b"),
        ("google/gemma-3-4b-it", "gemma-3-4b"),
    ],
)
def test_names_of_the_hub(name, packaged):
    assert packaged in MODELS
    assert load_config(name).to_dict() == load_config(packaged).to_dict()


@pytest.mark.parametrize("name", ["someone/Llama-3-8B-262k", "Qwen/Qwen2.5-7B-1M", "llama", ""])
def test_another_name_is_no_model_of_the_package(name):
    assert configs.packaged_name(name) is None


def test_a_folder_goes_before_a_name_of_the_hub(config, tmp_path, monkeypatch):
    folder = tmp_path / "meta-llama" / "Meta-Llama-3-8B"
    folder.mkdir(parents=True)
    config.to_json_file(folder / "config.json")
    monkeypatch.chdir(tmp_path)
    found = load_config("meta-llama/Meta-Llama-3-8B")
    assert found.hidden_size == config.hidden_size
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"Meta-Llama-3-8B', which has no config\.json"):
        load_config("meta-llama/Meta-Llama-3-8B")


def test_a_config_in_the_cache_of_the_hub(config, tmp_path, monkeypatch):
    folder = tmp_path / "models--someone--Llama-3-8B-262k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    config.to_json_file(folder / "snapshots" / ("0" * 40) / "config.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_config("someone/Llama-3-8B-262k").hidden_size == config.hidden_size
