"""The command line: its report, its files, and one sentence for bad input."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrk.plan import MODELS, load_config
from lrk.plan.command import main
from lrk.plan.settings import Settings
from lrk.plan.traffic import KEYS, PARAMETERS

QUICK = ["--length", "48", "--optim", "sgd"]
SHARED = ["--sequence_parallel", "4"]


@pytest.fixture
def path(tmp_path, config):
    config.to_json_file(tmp_path / "config.json")
    return tmp_path


def test_plan_of_a_config_file(path, capsys):
    arguments = ["--model", str(path / "config.json"), *QUICK, "--json", str(path / "plan.json")]
    arguments += ["--plot", str(path / "plan.png"), "--tokens", "1000", "--dollars-per-hour", "2"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "saved activations" in text
    assert "Assumed, not measured" in text
    report = json.loads((path / "plan.json").read_text())
    assert (report["length"], report["settings"]["optim"]) == (48, "sgd")
    assert (path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_comparison(path, capsys):
    arguments = ["--model", str(path), *QUICK, "--compare", "--json", str(path / "plans.json")]
    assert main(arguments) == 0
    assert "liger-style" in capsys.readouterr().out
    reports = json.loads((path / "plans.json").read_text())
    assert [each["settings"]["implementation"] for each in reports] == [
        "lrk",
        "liger-style",
        "stock",
    ]


def test_a_rank_of_several(path, capsys):
    arguments = ["--model", str(path), *QUICK, "--fsdp", "4", "--sequence-parallel", "2"]
    assert main([*arguments, "--no-accumulates", "--json", str(path / "plan.json")]) == 0
    text = capsys.readouterr().out
    assert "One of 4 processes that weights are sharded over (FSDP2), 2 to a sample: 24 t" in text
    assert "Estimate for 4 h100, 8 a node, not measured" in text
    report = json.loads((path / "plan.json").read_text())
    assert set(report["sent_gib"]) == {
        f"{what} {of}" for what in ("all-gather", "reduce-scatter") for of in (PARAMETERS, KEYS)
    }
    estimate = report["estimate"]
    assert estimate["seconds_overlapped"] < estimate["seconds"]
    assert estimate["tokens_per_second"] == pytest.approx(4 * estimate["tokens_per_second_per_gpu"])
    assert estimate["tokens_per_second"] * estimate["seconds"] == pytest.approx(2 * 48)


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        ("views", "Self-distillation: one more forward pass of the model, on another view"),
        ("original", "Self-distillation: a frozen second model reads 12 tokens of each sample"),
    ],
)
def test_a_teacher_is_named(path, capsys, distill, said):
    assert main(["--model", str(path), *QUICK, "--distill", distill]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert "\n  teacher  " in printed


def test_anothers_attention_is_named(path, capsys):
    arguments = ["--model", str(path), *QUICK, "--attention", "flash_attention_3"]
    assert main([*arguments, "--compare", "--json", str(path / "plans.json")]) == 0
    reports = json.loads((path / "plans.json").read_text())
    attentions = [each["settings"]["attention"] for each in reports]
    assert attentions == ["flash_attention_3", "lrk", "lrk"]
    capsys.readouterr()
    assert main(arguments) == 0
    assert "lrk with flash_attention_3, bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "llama-9", *QUICK], "model is 'llama-9'; it must be the name of one that is"),
        (["--model", "Qwen/Qwen2.5-32B", *QUICK], "the nearest known are qwen2.5-3b, qwen2.5-7b,"),
        (["--model", "gpt", *QUICK], "or the path of a config.json or its folder: gemma-3-4b, lla"),
        (["--model", "llama-3-8b", "--length", "0"], "length is 0; it must be at least 2"),
        (["--model", "llama-3-8b", *QUICK, "--fit", "80"], "give one of --length and --fit"),
        (["--model", "llama-3-8b", "--fit", "eighty"], "--fit is 'eighty'"),
        (["--model", "llama-3-8b", "--lenght", "9"], "did you mean --length"),
        (["--model", "llama-3-8b", "--length", "1"], "length is 1"),
        (["--model", "llama-3-8b", *QUICK, "--fsdp", "0"], "fsdp is 0; it must be at least 1"),
        (["--model", "llama-3-8b", "--fit", "80", "--sequence_parallel", "2"], "it must divide"),
        (
            ["--model", "smollm2-135m", *QUICK, "--fsdp", "4", *SHARED, "--compare"],
            "--compare with --sequence_parallel 4: neither stock transformers nor liger-style",
        ),
        (
            ["--model", "smollm2-135m", *QUICK, "--distill", "views", "--compare"],
            "--compare with --distill views: neither stock transformers nor liger-style has",
        ),
        (["--model", "llama-3-8b", *QUICK, "--json", "/proc/plan.json"], "cannot be written to"),
        (["--model", "llama-3-8b", *QUICK, "--plot", "/no/where.png"], "lies in no folder that is"),
        (["--model", "llama-3-8b", *QUICK, "--json", "/"], "json '/' is a folder; it must be a"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "many"},
        {"rope_parameters": [1]},
        {"model_type": None},
        {"vocab_size": -1},
    ],
    ids=str,
)
def test_a_damaged_config_is_one_sentence(path, values, capsys):
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | values))
    assert main(["--model", str(path), *QUICK]) == 2
    error = capsys.readouterr().err
    assert f"model {str(path)!r} has " in error
    assert error.splitlines()[-1].startswith("lrk-plan: ")


@pytest.mark.parametrize(
    ("name", "value"), [("clips", "false"), ("batch", "2"), ("batch", True), ("length", 64.5)]
)
def test_settings_of_another_type(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be (bool|int)$"):
        Settings(**{"length": 64, name: value})


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("gemma-3-4b", 3.880),
        ("llama-2-7b", 6.738),
        ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554),
        ("ministral-3-8b", 8.490),
        ("olmo-3-7b", 7.298),
        ("phi-4-mini", 3.836),
        ("qwen2.5-7b", 7.616),
        ("qwen3-8b", 8.191),
        ("smollm3-3b", 3.075),
        ("llama-3-8b", 8.030),
        ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-1.5b", 1.544),
        ("qwen2.5-3b", 3.086),
        ("qwen2.5-14b", 14.770),
        ("mistral-7b-v0.3", 7.248),
        ("qwen2-7b", 7.616),
        ("smollm2-135m", 0.135),
    ],
)
def test_packaged_models_have_the_published_sizes(model, billions):
    assert model in MODELS
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(load_config(model))
    assert sum(p.numel() for p in built.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
