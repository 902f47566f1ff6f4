"""Which layers new distances reach: what configs say, and what patched models do."""

import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, PretrainedConfig

from lrk.hf import SUPPORTED, patch
from lrk.hf.architectures import architecture_of_type, sliding_window_of
from lrk.hf.stock_forward import hands_on
from lrk.layer_kinds import layer_kinds, period
from lrk.recipe import Placement
from lrk.train.dry_run import dry_run
from lrk.train.new_distances import check_new_distances
from lrk.train.reached_layers import NO_ROPE, SHORT_WINDOW, reached_layers
from tests.train.test_new_distances import Fixed

WINDOW = 8192  # tokens that the models know before they are extended

# As transformers makes the config of a model type: what is reached, and the layers of a period.
BY_CONFIG = {
    "llama": ("all 32 layers are reached", 1),
    "mistral": ("0 of 32 layers are reached; 32 with a sliding window", 1),
    "qwen2": ("all 32 layers are reached", 1),
    "olmo3": ("8 of 32 layers are reached; 24 with a sliding window", 4),
    "gemma2": ("13 of 26 layers are reached; 13 with a sliding window", 2),
    "gemma3_text": ("4 of 26 layers are reached; 22 with a sliding window", 6),
    "gpt_oss": ("18 of 36 layers are reached; 18 with a sliding window", 2),
    "smollm3": ("27 of 36 layers are reached; 9 without RoPE", 4),
    "qwen3_next": ("12 of 48 layers are reached; 36 of linear attention", 4),
    "qwen3_5_text": ("8 of 32 layers are reached; 24 of linear attention", 4),
}


@pytest.mark.parametrize("model_type", BY_CONFIG)
def test_configs_of_transformers(model_type):
    config = AutoConfig.for_model(model_type)
    expected, layers = BY_CONFIG[model_type]
    assert str(reached_layers(config, WINDOW)) == expected
    assert period(layer_kinds(config)) == layers


def test_a_sliding_window_is_reached_from_its_last_distance_on():
    """Of 4,096 tokens: the distances 0 to 4,095."""
    config = MistralConfig(sliding_window=4096)
    short, long = (reached_layers(config, window) for window in (4096, 4095))
    assert (short.reached, short.missed) == (0, {SHORT_WINDOW: 32})
    assert (long.reached, long.missed, long.farthest) == (32, {}, 4096)


def test_a_period_goes_on_into_what_is_left_over():
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=34)
    assert period(layer_kinds(config)) == 6
    config.layer_types = ["full_attention", *config.layer_types[1:]]
    assert period(layer_kinds(config)) == 29  # the last five are as the first five


def test_layers_that_nobody_knows_are_refused():
    config = AutoConfig.for_model("qwen2")
    config.layer_types = ["chunked_attention"] * 32
    with pytest.raises(ValueError, match=r"config\.layer_types has 'chunked_attention'; it "):
        reached_layers(config, WINDOW)


KNOWN, FAR, FARTHER = 16, 24, 31  # tokens; a jump of the positions in the middle of a text
TOKENS, LAYERS = 12, 8
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": KNOWN,
    "initializer_range": 0.2,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": None},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def tiny(model_type: str, **changes: Any) -> PretrainedConfig:
    """A model of the type in small; its layers are those that its config gives by itself."""
    return AutoConfig.for_model(model_type, **SHAPE | OTHERS.get(model_type, {}) | changes)


def with_a_jump(length: int) -> torch.Tensor:
    positions = torch.arange(TOKENS)
    return torch.where(positions < TOKENS // 2, positions, positions + length)[None]


def changed_layers(config: PretrainedConfig) -> list[bool]:
    """Whether a layer of the patched model tells one distance beyond `KNOWN` from another.

    All layers are given the same, so that none sees what another made of the positions.
    """
    torch.manual_seed(0)
    model = patch(AutoModelForCausalLM.from_config(config, attn_implementation="eager")).train()
    given = torch.randn(1, TOKENS, config.hidden_size)
    outputs: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: (given, *args[1:]))
        layer.register_forward_hook(lambda _, args, output: outputs.append(output))
    ends = torch.tensor([0, TOKENS], dtype=torch.int32)
    for jump in (FAR, FARTHER):
        with torch.no_grad():
            model(
                input_ids=torch.ones(1, TOKENS, dtype=torch.int64),
                position_ids=with_a_jump(jump),
                cu_seq_lens_q=ends,
                cu_seq_lens_k=ends,
                use_cache=False,
            )
    return [
        not torch.allclose(near, far, rtol=1e-3, atol=1e-3)
        for near, far in zip(outputs[:LAYERS], outputs[LAYERS:], strict=True)
    ]


@pytest.mark.parametrize("sliding_window", [KNOWN, 40])
@pytest.mark.parametrize("model_type", SUPPORTED)
def test_the_config_says_what_the_patched_model_does(model_type, sliding_window):
    """A sliding window of 16 hides what is new in a model of 16 positions, one of 40 does not."""
    config = tiny(model_type, sliding_window=sliding_window)
    attention = architecture_of_type(model_type).attention
    if sliding_window_of(config) is not None and not hands_on(attention, "position_ids"):
        pytest.skip("this transformers keeps positions from the attention: the patch is refused")
    layers = reached_layers(config, KNOWN)
    changed = changed_layers(config)
    assert sum(changed) == layers.reached
    reached = [
        kind.rotates and (kind.window is None or kind.window > KNOWN)
        for kind in layer_kinds(config)
    ]
    assert changed == reached


def test_layers_that_do_not_see_positions_are_a_warning(caplog):
    """No layer of it is hidden by a window."""
    smollm3 = AutoConfig.for_model("smollm3", num_hidden_layers=8)
    with caplog.at_level(logging.WARNING):
        found = check_new_distances(Fixed([[21]]), Placement(60, "pose"), 60, 24, smollm3)
    assert found.layers.missed == {NO_ROPE: 2}
    assert "layers that do not see positions (of 8: 2 without RoPE) are trained for no more" in (
        caplog.text
    )
    assert str(found).endswith("; 6 of 8 layers are reached; 2 without RoPE")


def test_layers_with_a_window_are_as_they_should_be(caplog):
    olmo = AutoConfig.for_model("olmo3", sliding_window=20, num_hidden_layers=8)
    with caplog.at_level(logging.WARNING):
        found = check_new_distances(Fixed([[21]]), Placement(60, "pose"), 60, 24, olmo)
    assert str(found).endswith("; 2 of 8 layers are reached; 6 with a sliding window")
    assert not caplog.text


def test_a_run_that_reaches_no_layer_is_refused():
    mistral = MistralConfig(sliding_window=24, num_hidden_layers=3)
    message = (
        "position_method 'pose' would train nothing: no layer of the model rotates by positions "
        r"and sees beyond its window of 24 \(config.sliding_window: 3 with a sliding window\); "
        "take 'contiguous' and samples as long as the texts to come, or a model with layers that do"
    )
    with pytest.raises(ValueError, match=message):
        check_new_distances(Fixed([[21]]), Placement(60, "pose"), 60, 24, mistral)
    contiguous = Placement(60, "contiguous")
    found = check_new_distances(Fixed([[50]]), contiguous, 60, 24, mistral)
    assert (found.new_pairs, found.distances) == (0, 0)
    assert str(found) == (
        "none beyond the model's window of 24 is seen; 0 of 3 layers are reached; 3 with a sliding "
        "window"
    )
    blind = AutoConfig.for_model("smollm3", num_hidden_layers=2, no_rope_layers=[0, 0])
    with pytest.raises(ValueError, match=r"\(config.no_rope_layers: 2 without RoPE\)"):
        check_new_distances(Fixed([[21]]), Placement(60, "pose"), 60, 24, blind)


@pytest.mark.parametrize(
    ("model_type", "changes", "statements"),
    [
        ("smollm3", {}, ["that are new; 6 of 8 layers are reached; 2 without RoPE", "peak "]),
        (
            "mixtral",
            {"num_local_experts": 4, "sliding_window": None},
            [
                "that are new; all 8 layers are reached",
                "not predicted: dtype is float32, and",
            ],
        ),
    ],
)
def test_the_dry_run_says_it(model_type, changes, statements, arguments, tokenizer, tmp_path):
    """A config and a tokenizer are all that it reads."""
    config = tiny(model_type, vocab_size=320, max_position_embeddings=64, **changes)
    config.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    description = dry_run(arguments(model_name_or_path=str(tmp_path / "model")))
    assert all(statement in description for statement in statements)
