"""`lrk-train --recipe auto` as users meet it: from a folder and data to a file that runs."""

import json
import shutil
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lrk.train import disk_space, parse, run_folder
from lrk.train.auto_recipe import command
from lrk.train.command import main
from tests.train.conftest import prose

MODELS = resources.files("lrk.plan") / "models"
FAR_BEHIND = {"full length": (60.0, 60.0)}  # so that it is not planned beside


@pytest.fixture(autouse=True)
def _made_up_evidence(evidence, monkeypatch):
    monkeypatch.setattr(command, "read_evidence", lambda: evidence(methods=FAR_BEHIND))


@pytest.fixture
def words(model_folder, corpus, tmp_path):
    """A command line for the tiny model."""

    def make(**changes):
        values = {
            "recipe": "auto",
            "model_name_or_path": model_folder,
            "data": corpus / "*.txt",
            "target_length": 256,
            "output_dir": tmp_path / "run",
            "gpu": "h100",
        }
        values |= changes
        given = {name: value for name, value in values.items() if value is not None}
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]

    return make


def test_a_tiny_folder_from_command_to_trained_model(words, tmp_path, capsys):
    assert main(words(**{"learning-rate": 1e-3}, kernels__rope=None)) == 0
    text = capsys.readouterr().out
    file = tmp_path / "run" / "recipe.yaml"
    assert text.rstrip().endswith(f"lrk-train {file}")
    assert "of tiny models" in text
    assert "position_method: pose" in text
    assert "rests on proof/quotes/PoSE + reach + temperature/1024" in " ".join(text.split())
    written = yaml.safe_load(file.read_text())
    assert (written["learning_rate"], written["target_length"]) == (1e-3, 256)
    # The folder holds no run by it, and the run goes on where it was to.
    assert run_folder.contents(file.parent) == []
    assert main([str(file), "--dry_run"]) == 0
    assert "new distances" in capsys.readouterr().out
    quick = ["--max_steps", "1", "--gradient_accumulation_steps", "1", "--bf16", "false"]
    quick += ["--per_device_train_batch_size", "1"]
    assert main([str(file), *quick]) == 0
    assert (file.parent / "model.safetensors").exists()


def test_the_file_has_what_was_chosen_and_given(words, tmp_path):
    file = tmp_path / "mine.yaml"
    given = {"recipe_file": file, "kernels.attention": "sdpa", "pack": "false", "seed": 5}
    assert main(words(**given)) == 0
    arguments = parse([str(file)])
    assert arguments.kernels["attention"] == "sdpa"
    assert (arguments.pack, arguments.seed, arguments.position_method) == (False, 5, "pose")
    assert parse([str(file)]).to_yaml() == arguments.to_yaml()
    assert not (tmp_path / "run").exists()


def test_keys_of_a_file_are_given_too(words, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("learning_rate: 3e-4\ncontiguous_share: 0.5\n")
    assert main([str(base), *words(contiguous_share=0.1)]) == 0
    arguments = parse([str(tmp_path / "run" / "recipe.yaml")])
    assert (arguments.learning_rate, arguments.contiguous_share) == (3e-4, 0.1)


def test_a_dry_run_writes_nothing(words, tmp_path, capsys):
    assert main([*words(), "--dry_run"]) == 0
    assert "Nothing is written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": "manual"}, "recipe 'manual' is unknown; it must be one of auto"),
        ({"model_name_or_path": None}, "model_name_or_path is missing; with --recipe auto it"),
        ({"data": None}, "data is missing"),
        ({"target_length": None}, "target_length is missing"),
        ({"output_dir": None}, "output_dir is missing"),
        ({"target_length": 64}, "target_length is 64, and the model has a window of 64 already"),
        ({"gpu": "h10"}, "gpu 'h10' is unknown"),
        ({"recipe_file": "here.txt"}, "recipe_file is 'here.txt'; it must end in .yaml or .yml"),
        ({"learning_rat": 1}, "unknown key '--learning_rat'; did you mean '--learning_rate'"),
        ({"position_method": "pos"}, "position_method 'pos' is unknown"),
        ({"model_name_or_path": "./nowhere"}, "'./nowhere' does not exist"),
        ({"data": "nothing-*.txt"}, "nothing-"),
    ],
)
def test_bad_input_is_one_sentence(words, capsys, changes, sentence):
    assert main(words(**changes)) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_file_that_is_there_is_kept(words, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\n")
    assert main(words(recipe_file=file)) == 2
    assert "is there already; delete it, or name another" in capsys.readouterr().err
    assert file.read_text() == "seed: 1\n"


def test_stages_are_refused(words, capsys):
    assert main(["smollm2-135m-131072-stages", *words()]) == 2
    assert "has stages; --recipe auto makes the file of one run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def long_text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text(prose(8000, 0))
    return path


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("llama-3-8b", {"rope_scaling": "theta", "keep_attention": True, "reached": "all 32"}),
        ("qwen3-8b", {"rope_scaling": "theta", "reached": "all 36"}),
        ("mistral-7b-v0.3", {"rope_scaling": "theta", "reached": "all 32"}),
        (
            "olmo-3-7b",
            {"rope_scaling": "yarn", "attention_temperature": 1.0, "reached": "8 of 32"},
        ),
    ],
)
def test_models_of_the_planner(
    model, expected, words, tokenizer, long_text, tmp_path, monkeypatch, capsys
):
    """Folders with a config and a tokenizer, as a hub would give them; no weights are read."""
    folder = tmp_path / model
    tokenizer.save_pretrained(folder)
    shutil.copy(str(MODELS / f"{model}.json"), folder / "config.json")
    given = {"model_name_or_path": folder, "data": long_text, "target_length": 131_072}
    assert main(words(**given)) == 0
    file = tmp_path / "run" / "recipe.yaml"
    written = yaml.safe_load(file.read_text())
    assert (written["position_method"], written["train_length"]) == ("pose", 39_322)
    assert (written["dtype"], written["optim"]) == ("bfloat16", "adamw_torch_8bit")
    reached = expected.pop("reached")
    assert {name: written[name] for name in expected} == expected
    # The disk of another machine, and another optimizer than the one that needs torchao.
    free = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=2**50))
    monkeypatch.setattr(disk_space, "shutil", free)
    capsys.readouterr()
    assert main([str(file), "--dry_run", "--optim", "adamw_torch"]) == 0
    said = capsys.readouterr().out
    assert f"{reached} layers are reached" in said
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] < 131_072
