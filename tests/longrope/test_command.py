"""`lrk-data rope` from the command line."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from lrk.data.command import main
from lrk.lock import locked
from lrk.longrope import trial
from lrk.longrope.arguments import LongRopeArguments
from lrk.rope_factors import read_rope_factors
from studies.tiny import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture
def words(folder: Path, tmp_path: Path) -> list[str]:
    words = f"rope --model {folder} --output_dir {tmp_path / 'out'} --target-length 420"
    return f"{words} --samples 1 --population 4 --iterations 1 --device cpu".split()


def test_factors_are_found_and_more_iterations_go_on(words, tmp_path, capsys, monkeypatch):
    assert main(words) == 0
    out = capsys.readouterr().out
    file = tmp_path / "out" / "rope_factors.json"
    assert "held-out loss, nats a token of the answer:" in out
    assert out.splitlines()[-1] == str(file)
    factors = read_rope_factors(file)
    assert factors.target_length == 420
    assert factors.original_max_position_embeddings == 64
    assert len(factors.long_factor) == 4
    content = json.loads(file.read_text())
    assert content["search"]["trials"] >= 4
    assert content["held_out_loss"].keys() >= {"theta", "yarn", "longrope"}
    assert content["settings"]["iterations"] == 1

    made = 0
    extended = trial.extended

    def counted(*arguments):
        nonlocal made
        made += 1
        return extended(*arguments)

    monkeypatch.setattr(trial, "extended", counted)
    assert main([*words, "--iterations", "2"]) == 0
    again = json.loads(file.read_text())
    # The plans that are compared, twice all but what was found, and what is new.
    compared = 2 * len(content["held_out_loss"]) - 1
    assert made == compared + again["search"]["trials"] - content["search"]["trials"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("--target_length 64", "target_length is 64; it must be more than the 64 positions"),
        (
            "--target_length 100",
            "target_length 100 is too short for task rope: its shortest prompt has",
        ),
        ("--samples 0", "samples is 0; it must be at least 1"),
        ("--population 2", "population is 2; it must be at least 4"),
        ("--attention_factor inf", "attention_factor is inf; it must be positive and finite"),
        ("--dtype float99", "dtype 'float99' is unknown"),
        ("--haystack none.txt", "haystack 'none.txt' does not exist"),
        ("--model ./none", "model './none' does not exist"),
        ("--device abacus", "device 'abacus' is unknown to torch"),
        ("--device meta", "device 'meta' is not there; this machine has "),
        ("--samples many", "argument --samples: invalid int value: 'many'"),
    ],
)
def test_bad_input_is_one_sentence(words, changes, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, *changes.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lrk-data")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_supported(words, tmp_path, capsys):
    GPT2Config(n_layer=1).save_pretrained(tmp_path / "gpt2")
    assert main([*words, "--model", str(tmp_path / "gpt2")]) == 2
    assert "is of model type 'gpt2'; supported are " in capsys.readouterr().err


def test_what_a_model_is_not_searched_for(words, folder, tmp_path, capsys):
    config = json.loads((folder / "config.json").read_text())

    def refused(**changes):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | changes))
        assert main([*words, "--model", str(tmp_path / "other")]) == 2
        return capsys.readouterr().err

    assert "search factors for: no layer of the model rotates by positions and sees beyond" in (
        refused(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=64)
    )
    left = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    rope = config["rope_parameters"] | left
    assert "is 64, but the model's yarn reaches 256 tokens" in refused(rope_parameters=rope)
    mistral3 = AutoConfig.for_model("mistral3").to_dict()
    assert "of several modalities: save its text model by itself" in refused(**mistral3)


def test_a_folder_of_another_search(words, folder, tmp_path, capsys):
    assert main([*words, "--iterations", "0"]) == 0
    assert main([*words, "--seed", "1"]) == 2
    assert "holds a search with other settings (seed was 42 and is 1" in capsys.readouterr().err
    with locked(tmp_path / "out"):
        assert main(words) == 2
        assert "another process is writing to" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data += torch.randn_like(model.lm_head.weight)
    model.save_pretrained(other)
    assert main([*words, "--model", str(other)]) == 2
    assert "(weights was " in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e4
    (other / "config.json").write_text(json.dumps(config))
    assert main([*words, "--model", str(other)]) == 2
    assert "(rope_parameters was " in capsys.readouterr().err
    (tmp_path / "out" / "settings.json").unlink()
    assert main(words) == 2
    assert "holds rope_factors.json without settings.json" in capsys.readouterr().err
    assert main([*words, "--iterations", "0", "--seed", "1", "--overwrite_output_dir"]) == 0


def test_as_a_module(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["longrope", *words[1:], "--samples", "0"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("lrk.longrope", run_name="__main__")
    assert exit.value.code == 2
    assert "lrk-data rope: samples is 0" in capsys.readouterr().err


def test_types_are_checked():
    with pytest.raises(ValueError, match="samples is 'x', of type str; it must be int"):
        LongRopeArguments(model="m", target_length=9, output_dir="o", samples="x")
