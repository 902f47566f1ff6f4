"""configs/: every preset parses, and its numbers are those of its paper."""

import json
import re
from pathlib import Path

import pytest

import lrk.plan
from lrk.frequencies import rope_layer_types, rope_parameters
from lrk.plan import load_config, plan
from lrk.plan.gpus import GPUS
from lrk.plan.ledger import HOST
from lrk.positions import scaled_rope_theta
from lrk.train import parse
from lrk.train.arguments.positions import rope_plan
from lrk.train.extension import extend_config
from lrk.train.planned_step import plan_settings
from lrk.train.presets import preset_names
from lrk.train.stages import parse_stages

ROOT = Path(__file__).parents[1]
MODELS = Path(lrk.plan.__file__).parent / "models"
LONGRECIPE = {"batch": 96, "max_steps": 104, "learning_rate": 5e-5, "weight_decay": 0.1}
CREAM = {"batch": 32, "max_steps": 1000, "learning_rate": 2e-5, "position_method": "cream"}
POSE = {"batch": 64, "max_steps": 1000, "learning_rate": 2e-5, "position_method": "pose"}

# Preset: model, RoPE base to three digits, target, real tokens of a sample, and the rest.
PUBLISHED = {
    "llama-3-8b-81920": ("llama-3-8b", 48.9e6, 81_920, 24_000, LONGRECIPE),
    "llama-3-8b-131072": ("llama-3-8b", 131.5e6, 131_072, 38_400, LONGRECIPE),
    "mistral-7b-v0.3-81920": ("mistral-7b-v0.3", 4.87e6, 81_920, 24_000, LONGRECIPE),
    "mistral-7b-v0.3-131072": ("mistral-7b-v0.3", 13.5e6, 131_072, 38_400, LONGRECIPE),
    "qwen2-7b-81920": ("qwen2-7b", 4.87e6, 81_920, 24_000, LONGRECIPE),
    "qwen2-7b-131072": ("qwen2-7b", 13.5e6, 131_072, 38_400, LONGRECIPE),
    "llama-2-7b-32768-cream": ("llama-2-7b", 82.7e3, 32_768, 4096, CREAM),
    "llama-2-7b-32768-pose": ("llama-2-7b", 82.7e3, 32_768, 4096, POSE),
}

# Preset of no paper: model, its RoPE plan, target, real tokens of a sample, and what the plan makes
# of the config: type, factor, and the window of pretraining.
EXTENDED = {
    "llama-3.1-8b-262144": ("llama-3.1-8b", "llama3", 262_144, 76_800, ("llama3", 16, 8192)),
    "olmo-3-7b-131072": ("olmo-3-7b", "yarn", 131_072, 38_400, ("yarn", 16, 8192)),
    "qwen2.5-7b-131072": ("qwen2.5-7b", "yarn", 131_072, 38_400, ("yarn", 4, 32_768)),
    "qwen3-8b-131072": ("qwen3-8b", "yarn", 131_072, 38_400, ("yarn", 4, 32_768)),
    "smollm3-3b-131072": ("smollm3-3b", "yarn", 131_072, 38_400, ("yarn", 2, 65_536)),
}


@pytest.mark.parametrize("name", EXTENDED)
def test_rope_of_the_models(name, tmp_path):
    """The factors that the models' cards and configs name."""
    model, plan, target, length, (rope_type, factor, original) = EXTENDED[name]
    arguments = parse([name, "--output_dir", str(tmp_path), "--optim", "adamw_torch"])
    config = load_config(model)
    assert config.max_position_embeddings < target == arguments.target_length
    assert (arguments.train_length, arguments.rope_scaling) == (length, plan)
    extend_config(config, target, rope_plan(arguments))
    # Layers with a sliding window stay as they are.
    kinds = rope_layer_types(config)
    kind = "full_attention" if "full_attention" in kinds else None
    found = rope_parameters(config, kind)
    assert (found["rope_type"], found["factor"]) == (rope_type, factor)
    assert found["original_max_position_embeddings"] == original
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    assert batch == LONGRECIPE["batch"]


# Preset of full length: model, and RoPE after each of its stages.
FULL_LENGTH = {
    "llama-3-8b-131072-full": ("llama-3-8b", ({"rope_theta": 30.4e6}, {"rope_theta": 131.5e6})),
    "qwen2.5-7b-131072-full": ("qwen2.5-7b", ({"factor": 2}, {"factor": 4})),
}


def test_every_preset_is_covered():
    others = {"llama-3-8b-131072-stages", "smollm2-135m-131072", "smollm2-135m-131072-stages"}
    known = PUBLISHED.keys() | EXTENDED.keys() | FULL_LENGTH.keys() | others
    assert set(preset_names()) == known


def full_length_stages(name, tmp_path):
    """The arguments of each; the optimizer of the presets needs torchao."""
    staged = parse_stages([name, "--output_dir", str(tmp_path), "--optim", "adamw_torch"])
    return [stage.arguments(staged.model, None) for stage in staged.stages]


@pytest.mark.parametrize("name", FULL_LENGTH)
def test_full_length_grows(name, tmp_path):
    """To the RoPE of the longer window at once, by samples that are as long as the windows."""
    model, ropes = FULL_LENGTH[name]
    stages = full_length_stages(name, tmp_path)
    original, config = load_config(model), load_config(model)
    for arguments, target, rope in zip(stages, (65_536, 131_072), ropes, strict=True):
        assert arguments.target_length == arguments.train_length == target
        assert arguments.position_method == "contiguous"
        extend_config(config, target, rope_plan(arguments), original)
        assert config.max_position_embeddings == target
        for key, value in rope.items():
            assert config.rope_parameters[key] == pytest.approx(value, rel=5e-3)
        batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        assert batch == LONGRECIPE["batch"]
        assert arguments.learning_rate == LONGRECIPE["learning_rate"]
        assert arguments.weight_decay == LONGRECIPE["weight_decay"]
    assert sum(arguments.max_steps for arguments in stages) == LONGRECIPE["max_steps"]
    at_once = load_config(model)
    extend_config(at_once, 131_072, rope_plan(stages[-1]))
    assert at_once.rope_parameters == config.rope_parameters


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("llama-3-8b-131072-full", 0),
        pytest.param("llama-3-8b-131072-full", 1, marks=pytest.mark.slow),
        pytest.param("qwen2.5-7b-131072-full", 0, marks=pytest.mark.slow),
        pytest.param("qwen2.5-7b-131072-full", 1, marks=pytest.mark.slow),
    ],
)
def test_full_length_fits_as_the_preset_says(name, stage, tmp_path):
    model, _ = FULL_LENGTH[name]
    said = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    arguments, config = full_length_stages(name, tmp_path)[stage], load_config(model)
    settings = plan_settings(arguments, config, "lrk", "adamw_torch_8bit", "h100")
    found = plan(model, config, settings)
    assert found.device_gib < GPUS["h100"].gib
    row = (
        rf"# +{settings.length:,} tokens: +a device of {found.device_gib:.1f} GiB, "
        rf"{found.parts_gib[HOST]:.1f} GiB on the host, +{found.flops / 1e12:,.0f} TFLOP"
    )
    assert re.search(row, said), row


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_the_papers(name, tmp_path):
    model, theta, target, length, others = PUBLISHED[name]
    # The optimizer of the presets needs torchao; everything else is checked as it is.
    arguments = parse([name, "--output_dir", str(tmp_path), "--optim", "adamw_torch"])
    config = json.loads((MODELS / f"{model}.json").read_text())
    dimension = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    follows = scaled_rope_theta(
        config["rope_theta"], min(config["max_position_embeddings"], target), target, dimension
    )
    assert (arguments.rope_theta or follows) == pytest.approx(theta, rel=5e-3)
    assert arguments.target_length == target
    assert arguments.train_length == length
    expected = dict(others)
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    assert batch == expected.pop("batch")
    assert {key: getattr(arguments, key) for key in expected} == expected
    assert (arguments.adam_beta1, arguments.adam_beta2) == (0.9, 0.999)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("qwen2")])
def test_a_base_that_the_config_would_hide_is_written_down(name, tmp_path):
    """The config of Qwen2-7B claims 131,072 positions, so nothing would be scaled."""
    arguments = parse([name, "--output_dir", str(tmp_path), "--optim", "adamw_torch"])
    from_pretraining = scaled_rope_theta(1e6, 32_768, arguments.target_length, 128)
    assert arguments.rope_theta == pytest.approx(from_pretraining, rel=1e-6)
