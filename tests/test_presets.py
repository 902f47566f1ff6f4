"""configs/: every preset parses, and its numbers are those of its paper."""

import json
from pathlib import Path

import pytest

import lrk.plan
from lrk.frequencies import rope_layer_types, rope_parameters
from lrk.plan import load_config
from lrk.positions import scaled_rope_theta
from lrk.train import parse
from lrk.train.arguments.positions import rope_plan
from lrk.train.extension import extend_config
from lrk.train.presets import preset_names

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


def test_every_preset_is_covered():
    others = {"llama-3-8b-131072-stages", "smollm2-135m-131072", "smollm2-135m-131072-stages"}
    assert set(preset_names()) == PUBLISHED.keys() | EXTENDED.keys() | others


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
