"""A run stretches RoPE by the plan that it names, and says so wherever a run says what it does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lrk.frequencies import rope_frequencies
from lrk.rope_scaling import RopePlan, scaled_rope_parameters
from lrk.train import train
from lrk.train.arguments.positions import rope_plan
from lrk.train.dry_run import dry_run
from lrk.train.pretrained import load_config
from lrk.train.session import set_up
from tests.train.test_reached_layers import tiny

# The model rotates 8 dimensions, and its window is 64 tokens.
CRITICAL = {"rope_scaling": "ntk", "rope_critical_dimension": 1}


@pytest.fixture
def factors(tmp_path) -> str:
    file = tmp_path / "factors.json"
    file.write_text(json.dumps({"long_factor": [1, 2, 4, 4.5], "attention_factor": 1.25}))
    return str(file)


@pytest.fixture
def longrope(factors) -> dict[str, str]:
    return {"rope_scaling": "longrope", "rope_factors": factors}


@pytest.mark.parametrize("name", ["yarn", "cope", "longrope"])
def test_the_saved_model_is_stock_and_says_its_plan(arguments, factors, model_folder, name):
    made = arguments(rope_scaling=name, rope_factors=factors if name == "longrope" else None)
    trainer = train(made)
    folder = Path(made.output_dir)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    original = AutoConfig.from_pretrained(model_folder)
    expected = scaled_rope_parameters(original, 256, rope_plan(made))
    assert loaded.config.rope_parameters == expected
    tokens, positions = torch.arange(20)[None], 12 * torch.arange(20)[None]
    with torch.no_grad():
        stock, ours = (
            model.eval()(tokens, position_ids=positions).logits for model in (loaded, trainer.model)
        )
    torch.testing.assert_close(stock, ours, rtol=1e-4, atol=1e-4)

    config = json.loads((folder / "config.json").read_text())
    scaling = {key: value for key, value in expected.items() if key != "rope_theta"}
    assert config["rope_scaling"] == scaling
    assert yaml.safe_load((folder / "config.yaml").read_text())["rope_scaling"] == name
    card = (folder / "README.md").read_text()
    assert f"| rope_scaling | {name} |\n| RoPE | {expected['rope_type']}, base " in card

    # A stage that goes on from it leaves what it made.
    again = train(
        arguments(
            model_name_or_path=str(folder),
            output_dir=str(folder.parent / "annealed"),
            rope_scaling=name,
            rope_factors=made.rope_factors,
        )
    )
    assert again.model.config.rope_parameters == expected


def test_the_dry_run_names_the_plan(arguments, longrope, model_folder):
    before = "RoPE             default, base 10,000 -> "
    assert f"{before}default, base 305,674, by rope_scaling theta\n" in dry_run(arguments())
    assert f"{before}yarn, base 10,000, factor 4, original window 64, by rope_scaling yarn" in (
        dry_run(arguments(rope_scaling="yarn"))
    )
    assert (
        f"{before}longrope, base 10,000, factor 4, attention factor 1.25, divisors 1 to 4.5, "
        "original window 64, by rope_scaling longrope\n" in dry_run(arguments(**longrope))
    )
    assert "RoPE             default, base 10,000: the model's own" in (
        dry_run(arguments(target_length=64, rope_scaling="yarn", position_method="contiguous"))
    )


def test_a_critical_dimension_is_taken(arguments, model_folder):
    made = arguments(**CRITICAL)
    assert rope_plan(made) == RopePlan("ntk", critical_dimension=1)
    trainer = set_up(made)
    before = rope_frequencies(AutoConfig.from_pretrained(model_folder)).inv_freq
    after = rope_frequencies(trainer.model.config).inv_freq
    torch.testing.assert_close(before / after, torch.tensor([1.0, 4, 16, 64]).double())


@pytest.mark.parametrize(
    ("changes", "content", "message"),
    [
        ({}, {"long_factor": [1, 2]}, "has 2 numbers in long_factor; the model needs 4"),
        ({}, {"long_factor": [1, 2, 3, 0.5]}, "has 0.5 as long_factor 3"),
        ({}, {"long_factor": [1] * 4, "target_length": 99}, "found for target_length 99, which"),
        (
            {"rope_scaling": "ntk", "rope_critical_dimension": 4, "rope_factors": None},
            {},
            "rope_critical_dimension is 4; .* the model has 4, so it must be between 1 and 3",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_is_refused_before_weights(
    arguments, longrope, changes, content, message, monkeypatch
):
    Path(longrope["rope_factors"]).write_text(json.dumps(content))
    monkeypatch.setattr("lrk.train.session.load_model", lambda _: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=message) as caught:
        set_up(arguments(**longrope | changes))
    assert "\n" not in str(caught.value)


def test_other_factors_in_the_same_file_are_refused(arguments, longrope):
    saving = {"save_strategy": "steps", "save_steps": 1, **longrope}
    train(arguments(**saving))
    saving["resume_from_checkpoint"] = "true"
    set_up(arguments(**saving))
    Path(longrope["rope_factors"]).write_text(json.dumps({"long_factor": [1, 2, 4, 5]}))
    with pytest.raises(ValueError, match="is of a run with content of rope_factors '"):
        set_up(arguments(**saving))


@pytest.mark.parametrize("name", ["yarn", "llama3", "cope"])
def test_a_resumed_run_ends_with_the_same_weights(arguments, tokenizer, tmp_path, name):
    """The trainer of transformers reads the config of a checkpoint in a way of its own."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = Qwen3Config(**sizes, **heads, max_position_embeddings=64, eos_token_id=0)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "qwen3")
    tokenizer.save_pretrained(tmp_path / "qwen3")
    options = {"model_name_or_path": str(tmp_path / "qwen3"), "rope_scaling": name}
    options |= {"save_strategy": "steps", "save_steps": 1}
    straight = train(arguments(**options)).model.state_dict()
    straight = {key: value.clone() for key, value in straight.items()}
    folder = Path(arguments().output_dir)
    shutil.rmtree(folder / "checkpoint-2")
    resumed = train(arguments(**options, resume_from_checkpoint="true"))
    assert resumed.state.global_step == 2
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, straight[key]), key
    assert json.loads((folder / "config.json").read_text())["rope_scaling"]


def test_what_a_stage_finds_stretched_already_is_no_warning(arguments, caplog):
    options = {"target_length": 64, "position_method": "contiguous", "rope_scaling": "yarn"}
    made = arguments(**options)
    assert not set_up(made, base_model="another", original=load_config(made)).stretches
    assert "changes nothing" not in caplog.text
    trainer = set_up(arguments(**options))
    assert "rope_scaling 'yarn' changes nothing" in caplog.text
    trainer.create_model_card()
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "| rope_scaling | none: the model's own |\n| RoPE | default, base 10,000 |" in card


def test_a_model_that_transformers_4_loses_is_warned_about_once(
    arguments, tokenizer, tmp_path, caplog
):
    gemma = tiny("gemma3_text", vocab_size=320, max_position_embeddings=64, sliding_window=16)
    AutoModelForCausalLM.from_config(gemma).save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    train(arguments(model_name_or_path=str(tmp_path / "gemma"), **saving))
    assert caplog.text.count("transformers 4 does not see the RoPE of this model") == 1
