"""`lrk-train` as users meet it: what it prints, and one sentence for each kind of bad input."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import GPT2Config

from lrk.train.command import main


@pytest.fixture
def config(options, tmp_path):
    def write(**changes) -> str:
        path = tmp_path / "config.yaml"
        values = {k: v for k, v in (options | changes).items() if v is not None}
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


def test_a_run(config, options):
    assert main([config(), "--max_steps", "1"]) == 0
    folder = Path(options["output_dir"])
    assert (folder / "model.safetensors").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["max_steps"] == 1


def test_a_dry_run_prints_the_plan_and_writes_nothing(config, options, capsys):
    assert main([config(), "--dry_run"]) == 0
    text = capsys.readouterr().out
    resolved = yaml.safe_load(text.partition("Token plan")[0])
    assert resolved["target_length"] == 256
    assert resolved["kernels"] == {"rope": True, "attention": True, "cross_entropy": True}
    for line in ("of 32 tokens", "hold more than one document", "left over", "GiB"):
        assert line in text
    assert "positions and text of each segment" in text
    assert "activations and the loss come on top and are not predicted" in text
    assert not Path(options["output_dir"]).exists()


def test_a_dry_run_counts_lora_and_names_what_it_cannot_predict(config, capsys):
    assert main([config(lora_rank=2, optim="adafactor"), "--dry_run"]) == 0
    assert "not predicted for adafactor" in capsys.readouterr().out


@pytest.fixture
def other_models(tmp_path, model_folder) -> Path:
    """Folders with a model that is not supported, and with a vocabulary that is too small."""
    (tmp_path / "gpt2").mkdir()
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    (tmp_path / "small").mkdir()
    for file in model_folder.iterdir():
        (tmp_path / "small" / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "small" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 300}))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_length": 16}, "target_length is 16, shorter than train_length 32"),
        ({"position_method": "posse"}, "position_method 'posse' is unknown"),
        ({"learnig_rate": 1}, "unknown key 'learnig_rate'"),
        ({"data": ["{}/absent.jsonl"]}, "absent.jsonl' does not exist"),
        ({"data": None}, "data is empty"),
        ({"data": ["{}/empty.txt"]}, "none of the 1 documents holds text"),
        ({"data": ["{}/short.txt"]}, "but one sample of train_length needs 32"),
        ({"data": ["{}/short.txt"], "pack": False}, "needs train_length 32"),
        ({"output_dir": "{}/other"}, "holds another run (config.yaml)"),
        ({"output_dir": None}, "output_dir is missing"),
        ({"resume_from_checkpoint": "true"}, "holds no whole checkpoint"),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
        ({"model_name_or_path": "{}/nowhere"}, "nowhere' does not exist"),
        ({"model_name_or_path": "{}/other"}, "cannot be loaded"),
        ({"model_name_or_path": "{}/gpt2"}, "model type 'gpt2'; supported are llama, mistral"),
        (
            {"model_name_or_path": "{}/small"},
            "token ids up to 319, but the model's vocabulary ends at 299",
        ),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_data is empty"),
        ({"kernels": {"attention": False}}, "kernels.attention is false"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(config, other_models, capsys, changes, message):
    def filled(value):
        if isinstance(value, list):
            return [filled(item) for item in value]
        return value.format(other_models) if isinstance(value, str) else value

    status = main([config(**{key: filled(value) for key, value in changes.items()})])
    error = capsys.readouterr().err
    assert status == 2
    lines = [line for line in error.splitlines() if line.startswith("lrk-train: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert error.splitlines()[-1] == lines[0]
