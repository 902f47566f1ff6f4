"""What is planned where no flag says which step."""

import json
from dataclasses import replace

import pytest

from lrk.plan import Settings, load_config
from lrk.plan.command import main
from lrk.plan.presets import step_of_run, usual_step
from lrk.plan.variants import flags
from lrk.train import parse
from lrk.train.planned_step import plan_settings
from lrk.train.presets import preset, preset_names
from lrk.train.yaml_text import read_mapping


@pytest.fixture
def llama(config, tmp_path):
    """A tiny model in a folder of a known name."""
    folder = tmp_path / "Meta-Llama-3-8B"
    folder.mkdir()
    config.to_json_file(folder / "config.json")
    return folder


@pytest.mark.parametrize(
    "name", [name for name in preset_names() if "stages" not in read_mapping(preset(name))]
)
def test_the_step_of_a_preset_is_the_one_that_lrk_train_runs(name, tmp_path):
    arguments = parse([name, "--output_dir", str(tmp_path)])
    config = load_config(str(arguments.model_name_or_path))
    optim = str(arguments.to_dict()["optim"])
    run = plan_settings(arguments, config, "lrk", optim, "h100")
    found = usual_step(str(arguments.model_name_or_path), config, on_gpu=True)
    if found.source == f"the step of the preset {name}":
        assert Settings(**found.settings) == replace(run, bf16=True)
    given = {key: getattr(arguments, key) for key in read_mapping(preset(name))}
    given["optim"] = optim
    assert Settings(**step_of_run(given)) == replace(run, bf16=False, gpu="h100")


@pytest.mark.parametrize(
    ("model", "source", "length"),
    [
        ("llama-3-8b", "the step of the preset llama-3-8b-131072", 38_400),
        ("Qwen/Qwen2.5-7B-Instruct", "the step of the preset qwen2.5-7b-131072", 38_400),
        ("llama-2-7b", "the step of the preset llama-2-7b-32768-cream", 4096),
        ("llama-3.2-1b", "no preset has this model: a step like that of presets of 7B and", 39_322),
    ],
)
def test_which_step(model, source, length):
    found = usual_step(model, load_config(model), on_gpu=True)
    assert found.source.startswith(source)
    settings = Settings(**found.settings)
    assert settings.length == length
    if length > 4096:
        assert flags(settings) == "--layers_per_checkpoint 2 --tile_tokens 2048 --bf16"


def test_layers_of_several_kinds_have_a_checkpoint_each():
    settings = usual_step("gemma-3-4b", load_config("gemma-3-4b"), on_gpu=True).settings
    assert (settings.get("layers_per_checkpoint"), settings["tile_tokens"]) == (None, 2048)


def test_the_command_names_the_preset_and_prints_others_beside_it(llama, capsys):
    assert main(["--model", str(llama), "--length", "48", "--json", str(llama / "plan.json")]) == 0
    said = capsys.readouterr().out
    first, *lines = said.splitlines()
    assert first == (
        "Planned: the step of the preset llama-3-8b-131072 (--layers_per_checkpoint 2 "
        "--tile_tokens 2048 --bf16); with a flag of the step flags alone count"
    )
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("Beside it")) + 1 :]
    assert [line[:32].strip() for line in table] == [
        "the step above",
        "whole layers",
        "checkpoints on the host",
        "and the optimizer, with tiles",
        "LoRA of rank 16, whole layers",
        "stock transformers",
    ]
    report = json.loads((llama / "plan.json").read_text())
    assert report["settings"]["layers_per_checkpoint"] == 2
    # Each row is what its flags plan by themselves.
    for line in table[1:]:
        words = line.partition("--")[2]
        own = ["--model", str(llama), "--length", "48", *f"--{words}".split()]
        assert main([*own, "--json", str(llama / "own.json")]) == 0
        capsys.readouterr()
        alone = json.loads((llama / "own.json").read_text())
        assert line[32:40].strip() == f"{alone['peak_gib']:.2f}"


def test_a_flag_of_the_step_replaces_the_preset(llama, capsys):
    assert main(["--model", str(llama), "--length", "48", "--optim", "sgd"]) == 0
    said = capsys.readouterr().out
    assert "Planned" not in said
    assert "Beside it" not in said
    assert ", sgd, traced" in said


def test_the_length_is_that_of_the_preset_too(llama, capsys):
    """The card and the price are none of the step."""
    assert main(["--model", str(llama), "--gpu", "a100", "--tokens", "9", "--compare"]) == 0
    said = capsys.readouterr().out
    assert "Planned: the step of the preset llama-3-8b-131072" in said
    assert "38,400 tokens, GiB" in said
