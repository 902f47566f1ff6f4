"""`lrk-train` as users meet it: what it prints. Bad input is in `tests/test_bad_input.py`."""

from pathlib import Path

import pytest
import yaml

from lrk.plan import Settings, load_config, plan
from lrk.plan.command import description
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
    for line in ("Peak ", "saved activations", "Peak of each phase", "adamw_torch_fused"):
        assert line in text.partition("Memory of a step")[2]
    assert not Path(options["output_dir"]).exists()


def test_a_dry_run_plans_the_step_of_its_arguments(config, model_folder, capsys):
    """As `lrk.plan` finds it for the model, with the run's own settings."""
    assert main([config(lora_rank=2, optim="adafactor", max_grad_norm=0), "--dry_run"]) == 0
    settings = Settings(
        length=32,
        dtype="float32",
        activation_checkpointing=False,
        accumulates=False,
        optim="adafactor",
        lora_rank=2,
        clips=False,
        gpu="cpu",
    )
    name = str(model_folder)
    expected = description(plan(name, load_config(name), settings))
    assert expected in capsys.readouterr().out


def test_a_dry_run_plans_anothers_attention(config, capsys):
    chosen = {"kernels": {"attention": "sdpa"}, "pack": False}
    assert main([config(**chosen), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "attention: sdpa" in text
    assert "lrk with sdpa" in text
    assert main([config(kernels={"attention": "flash_attention_2"}), "--dry_run"]) == 2
    assert "attention is flash_attention_2; it needs a GPU" in capsys.readouterr().err


def test_a_dry_run_names_what_it_cannot_predict(config, capsys):
    assert main([config(optim="adagrad"), "--dry_run"]) == 0
    assert "not predicted for adagrad: it comes on top" in capsys.readouterr().out
    assert main([config(kernels={"rope": False}), "--dry_run"]) == 0
    assert "not predicted for kernels {'rope': False" in capsys.readouterr().out
