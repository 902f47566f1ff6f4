"""Decoding methods in `lrk-eval`: read from text, in force for every task, part of the record."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, MistralConfig

import lrk
from lrk.decode import self_extend
from lrk.decode.mapped import MappedAttention
from lrk.eval import decoding
from lrk.eval import evaluation as evaluation_module
from lrk.eval.command import main
from lrk.eval.losses import loss_by_position, token_losses
from lrk.sealed import read_sealed, write_sealed

METHOD = "self_extend(window=32, group=8)"


@pytest.fixture
def config(model_folder, tmp_path):
    (tmp_path / "long.txt").write_text("The grass is green. The sky is blue. " * 40)

    def write(**changes) -> str:
        values = {
            "model": str(model_folder),
            "output_dir": str(tmp_path / "results"),
            "tasks": ["loss_by_position"],
            "lengths": [256],
            "position_bins": 4,
            "data": [str(tmp_path / "long.txt")],
            "device": "cpu",
            "decoding": METHOD,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (METHOD, {"window": 32, "group": 8}),
        ("string(shift=900)", {"shift": 900, "window": 128}),
        ("dca( chunk = 6, length=8 )", {"chunk": 6, "length": 8}),
        ("pcd", {"alpha": 0.2, "beta": 2.5, "base_ratio": 1e-4, "gamma": 30}),
        ("pcd(beta=1)", {"alpha": 0.2, "beta": 1.0, "base_ratio": 1e-4, "gamma": 30}),
    ],
)
def test_methods_are_read_with_their_defaults(text, numbers):
    found = decoding.read(text)
    assert found.numbers == numbers
    assert str(decoding.read(str(found))) == str(found)
    assert {type(number) for number in found.numbers.values()} <= {int, float}


def test_equal_numbers_are_written_equally():
    assert str(decoding.read("pcd(beta=1)")) == str(decoding.read("pcd(beta=1.0)"))


def test_losses_are_those_in_the_block(config, model_folder, tmp_path):
    assert main([config()]) == 0
    (cell,) = json.loads((tmp_path / "results" / "results.json").read_text())["cells"]
    model = lrk.patch(AutoModelForCausalLM.from_pretrained(model_folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    text = (tmp_path / "long.txt").read_text()
    tokens = torch.tensor(tokenizer(text).input_ids[:256])
    plain = loss_by_position([token_losses(model, tokens)], 4)
    with self_extend(model, window=32, group=8):
        expected = loss_by_position([token_losses(model, tokens)], 4)
    found = [part["loss"] for part in cell["result"]["bins"]]
    assert found == pytest.approx([mean.loss for _, _, mean in expected], rel=1e-5)
    assert found[-1] != pytest.approx(plain[-1][2].loss, rel=1e-5)
    assert cell["settings"]["decoding"] == METHOD
    assert METHOD in (tmp_path / "results" / "results.md").read_text()


def test_answers_are_given_in_the_block(config, monkeypatch):
    inside = []

    def seen(model, tokenizer, prompts, max_new_tokens):
        inside.append(any(isinstance(each, MappedAttention) for each in model.modules()))
        return [""] * len(prompts)

    monkeypatch.setattr(evaluation_module, "answers", seen)
    assert main([config(tasks=["passkey"], lengths=[450], trials=2)]) == 0
    assert inside == [True, True]


def test_another_method_over_old_results_is_an_error(config, capsys):
    assert main([config()]) == 0
    assert main([config(decoding="dca(chunk=24, length=32)")]) == 2
    assert f"decoding was {METHOD!r} and is 'dca(" in capsys.readouterr().err
    # The same numbers in other words are the same method.
    assert main([config(decoding="self_extend( group=8, window=32 )")]) == 0


def test_results_of_before_there_was_decoding_are_those_without(config, tmp_path):
    plain = config(decoding=None)
    assert main([plain]) == 0
    (file,) = (tmp_path / "results" / "cells").glob("*.json")
    cell = read_sealed(file)
    del cell["settings"]["decoding"]
    write_sealed(file, cell)
    assert main([plain]) == 0
    assert "decoding" not in json.loads(file.read_text())["settings"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"decoding": "self_extend(1024, 8)"},
            "it must be written as in Python, like self_extend(",
        ),
        ({"decoding": "self_extend(window=w, group=8)"}, "it must be written as in Python"),
        ({"decoding": "self_extend("}, "it must be written as in Python"),
        ({"decoding": "self_extnd(window=8, group=2)"}, "'self_extnd' is unknown; it must be one"),
        ({"decoding": "self_extend(window=8)"}, "missing a required argument: 'group'"),
        ({"decoding": "dca(chunk=6, size=8)"}, "it must be dca(chunk: int, length: int)"),
        ({"decoding": "self_extend(window=8, group=3)"}, "window is 8; it must be a multiple of"),
        ({"decoding": "self_extend(window=8.5, group=3)"}, "window is 8.5; it must be of type int"),
        ({"decoding": "pcd(alpha='much')"}, "alpha is 'much'; it must be of type float"),
        ({"decoding": "pcd(beta=1e999)"}, "beta is inf; it must be of type float, and finite"),
        ({"decoding": "pcd(alpha=1)"}, "alpha is 1.0; it must be positive, and at most ln 2"),
        ({"decoding": "self_extend(window=8, window=16, group=2)"}, "it must be written as in"),
        ({"decoding": "self_extend(**{'window': 8, 'group': 2})"}, "it must be written as in"),
        ({"decoding": "self_extend(window={[]: 1}, group=2)"}, "it must be written as in Python"),
        ({"decoding": "pcd(beta=-1)"}, "beta is -1.0; it must be not negative"),
        ({"decoding": "pcd"}, "cuts off likelihoods; task loss_by_position must be run without"),
        ({"patch": False}, "which needs patch, which is false"),
    ],
)
def test_bad_input_is_one_sentence(config, capsys, tmp_path, changes, message):
    assert main([config(**changes)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path(tmp_path / "results").exists()


def test_a_sliding_window_is_refused_before_weights_are_read(config, tmp_path, tokenizer, capsys):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "num_key_value_heads": 1, "vocab_size": 640}
    MistralConfig(sliding_window=64, **sizes).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    assert main([config(model=str(tmp_path / "mistral"))]) == 2
    assert f"decoding is {METHOD!r}: model has a sliding window of 64" in capsys.readouterr().err


def test_models_that_lrk_does_not_patch_have_no_methods(config, tmp_path, tokenizer, capsys):
    GPT2Config(vocab_size=640, n_positions=512).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    assert main([config(model=str(tmp_path / "gpt2"))]) == 2
    assert "is of model type 'gpt2'; supported are" in capsys.readouterr().err
