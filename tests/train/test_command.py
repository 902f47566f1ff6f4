"""`lrk-train` as users meet it: what it prints. Bad input is in `tests/test_bad_input.py`."""

from pathlib import Path

import pytest
import yaml

from lrk.plan import Settings, load_config, plan
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
    resolved = yaml.safe_load(text.partition("Sample 0, epoch 0")[0])
    assert resolved["target_length"] == 256
    assert resolved["kernels"] == {"rope": True, "attention": True, "cross_entropy": True}
    for line in ("of 32 tokens", "hold more than one document", "left over", "GiB"):
        assert line in text
    assert "positions and text of each segment" in text
    for line in ("peak ", "saved activations", "fits  ", "adamw_torch_fused"):
        assert line in text.partition("Memory of a step")[2]
    assert not Path(options["output_dir"]).exists()


def test_a_dry_run_plans_the_step_of_its_arguments(config, model_folder, capsys):
    """As `lrk.plan` finds it for the model, with the run's own settings."""
    chosen = config(lora_rank=2, optim="adafactor", max_grad_norm=0, use_cpu=True)
    assert main([chosen, "--dry_run"]) == 0
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
    found = plan(name, load_config(name), settings)
    said = capsys.readouterr().out
    assert f"  peak             {found.peak_gib:.2f} GiB in {found.peak.moment.phase}\n" in said
    assert "lrk, float32, LoRA of rank 2, adafactor\n" in said
    assert "fits             yes: this machine has " in said


def test_a_dry_run_plans_anothers_attention(config, capsys):
    chosen = {"kernels": {"attention": "sdpa"}, "pack": False, "use_cpu": True}
    assert main([config(**chosen), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "attention: sdpa" in text
    assert "lrk with sdpa" in text
    flash = {"kernels": {"attention": "flash_attention_2"}}
    assert main([config(**flash, use_cpu=True), "--dry_run"]) == 2
    assert "attention is flash_attention_2; it needs a GPU" in capsys.readouterr().err
    assert main([config(**flash, bf16=None), "--dry_run", "--gpu", "h100"]) == 0
    assert "lrk with flash_attention_2, float32" in capsys.readouterr().out


def test_a_dry_run_names_what_it_cannot_predict(config, capsys):
    assert main([config(optim="adagrad"), "--dry_run"]) == 0
    assert "the optimizer state of adagrad: it comes on top" in capsys.readouterr().out
    assert main([config(kernels={"rope": False}), "--dry_run"]) == 0
    assert "not predicted for kernels {'rope': False" in capsys.readouterr().out
