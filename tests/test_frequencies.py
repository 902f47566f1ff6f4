import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lrk.frequencies import BY_LENGTH, ROPE_TYPES, frequencies_by_length, rope_frequencies

LENGTH = 4096
PARAMETERS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": LENGTH},
    "yarn with every option": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": LENGTH,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 0.9,
        "truncate": False,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LENGTH,
    },
    "longrope": {
        "short_factor": [1.0 + j / 32 for j in range(32)],
        "long_factor": [2.0 + j for j in range(32)],
        "original_max_position_embeddings": LENGTH,
    },
}


def make_config(name: str, max_position_embeddings: int) -> LlamaConfig:
    parameters = {"rope_type": name, "rope_theta": 5e5} | PARAMETERS[name]
    return LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        rope_parameters=parameters,
    )


@pytest.mark.parametrize("name", sorted(PARAMETERS))
@pytest.mark.parametrize("max_position_embeddings", [LENGTH, 8 * LENGTH])
def test_same_formula_as_transformers(name, max_position_embeddings):
    config = make_config(name, max_position_embeddings)
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        theirs, scaling = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        window = max_position_embeddings * (4 if rope_type == "dynamic" else 1)
        theirs, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=window)
    ours = rope_frequencies(config)
    assert ours.inv_freq.dtype == torch.float64
    assert ours.attention_scaling == pytest.approx(scaling, rel=1e-12)
    torch.testing.assert_close(ours.inv_freq, theirs.double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("length", [1, LENGTH, LENGTH + 1, 3 * LENGTH, 40 * LENGTH])
@pytest.mark.parametrize("name", sorted(BY_LENGTH))
def test_each_length_as_transformers(name, length):
    config = make_config(name, 8 * LENGTH)
    theirs, _ = ROPE_INIT_FUNCTIONS[name](config, seq_len=length)
    ours = frequencies_by_length(config).at(torch.tensor(length))
    torch.testing.assert_close(ours, theirs.double(), rtol=2e-6, atol=0)


def test_one_set_of_divisors_asks_for_no_length():
    config = make_config("longrope", 8 * LENGTH)
    config.rope_parameters["short_factor"] = list(config.rope_parameters["long_factor"])
    assert frequencies_by_length(config) is None
    expected = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=1)[0].double()
    torch.testing.assert_close(rope_frequencies(config).inv_freq, expected, rtol=2e-6, atol=0)


def test_partial_rotary_factor_is_obeyed_where_the_architecture_obeys_it():
    config = make_config("default", LENGTH)
    config.rope_parameters["partial_rotary_factor"] = 0.5
    theirs, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    assert rope_frequencies(config).inv_freq.shape == theirs.shape == (32,)
    config.model_type = "phi"
    assert rope_frequencies(config).inv_freq.shape == (16,)


def test_every_type_is_tested():
    tested = {parameters.get("rope_type", name) for name, parameters in PARAMETERS.items()}
    assert tested == set(ROPE_TYPES)


def test_unknown_type_is_named():
    config = make_config("default", LENGTH)
    config.rope_parameters["rope_type"] = "spiral"
    with pytest.raises(ValueError, match="rope_type is 'spiral'; it must be one of default"):
        rope_frequencies(config)
