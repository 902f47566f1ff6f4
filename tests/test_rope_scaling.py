import copy
import json
import math

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    modeling_rope_utils,
)

from lrk.frequencies import (
    frequencies_by_length,
    rope_frequencies,
    rope_layer_types,
    rotary_dim,
)
from lrk.rope_factors import RopeFactors
from lrk.rope_scaling import (
    ROPE_SCALINGS,
    SCALED_THETA,
    RopePlan,
    rope_description,
    scaled_rope_parameters,
)
from lrk.train import extend
from lrk.train.extension import extend_config

mp.dps = 40
PLANS = sorted(ROPE_SCALINGS)

# R, theta, L, Lt: Llama-2-7B, SmolLM2-135M, Llama-3-8B, Qwen2.5-7B, Gemma 3, Phi-4-mini.
SIZES = [
    (128, 10_000.0, 4096, 32_768),
    (64, 100_000.0, 8192, 131_072),
    (128, 500_000.0, 8192, 131_072),
    (128, 1_000_000.0, 32_768, 81_920),
    (256, 1_000_000.0, 32_768, 1_048_576),
    (96, 10_000.0, 4096, 131_072),
]


def llama(dim: int, window: int, **parameters) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        head_dim=dim,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default"} | parameters,
    )


def plan_of(name: str, dim: int, **options) -> RopePlan:
    if name == "longrope":
        options["factors"] = RopeFactors(tuple(1 + 0.37 * j for j in range(dim // 2)))
    return RopePlan(name, **options)


def extended(config: PretrainedConfig, target: int, plan: RopePlan) -> PretrainedConfig:
    config = copy.deepcopy(config)
    extend_config(config, target, plan)
    return config


# The papers' formulas, in 40 digits.


def geometric(theta, dim):
    return [mpf(theta) ** (-mpf(2 * j) / dim) for j in range(dim // 2)]


def paper_theta(dim, theta, before, after):
    """Dynamic NTK of factor f at the target's length."""
    f = mpf(after) / before
    return geometric(theta * (f * after / before - (f - 1)) ** (mpf(dim) / (dim - 2)), dim), 1


def paper_linear(dim, theta, before, after):
    """2306.15595, Eq. 4: position m is m L / L'."""
    return [omega * before / after for omega in geometric(theta, dim)], 1


def paper_ntk(dim, theta, before, after):
    """2502.20082, Eq. 7 and 10, Algorithm 2: theta_c = 1 / (lambda_c theta ** (2 c / d))."""
    critical = int(mpmath.ceil(mpf(dim) / 2 * mpmath.log(before / (2 * mp.pi), theta)))
    critical = min(critical, dim // 2 - 1)
    angle = 1 / (mpf(after) / before * mpf(theta) ** (mpf(2 * critical) / dim))
    return geometric(angle ** -(mpf(dim) / (2 * critical)), dim), 1


def paper_yarn(dim, theta, before, after):
    """2309.00071: the correction range of its code, alpha 1 and beta 32, and Eq. 15."""
    f = mpf(after) / before

    def at(turns):
        return dim * mpmath.log(before / (turns * 2 * mp.pi)) / (2 * mpmath.log(theta))

    low, high = max(mpmath.floor(at(32)), 0), min(mpmath.ceil(at(1)), dim - 1)
    found = []
    for j, omega in enumerate(geometric(theta, dim)):
        ramp = min(max((j - low) / (high - low), 0), 1)
        found.append(omega / f * ramp + omega * (1 - ramp))
    return found, mpf("0.1") * mpmath.log(f) + 1


def paper_llama3(dim, theta, before, after):
    """As Llama 3.1's released code, with its factors 1 and 4 for low and high frequencies."""
    f, low, high = mpf(after) / before, 1, 4
    found = []
    for omega in geometric(theta, dim):
        wavelength = 2 * mp.pi / omega
        smooth = (before / wavelength - low) / (high - low)
        if wavelength < mpf(before) / high:
            found.append(omega)
        elif wavelength > mpf(before) / low:
            found.append(omega / f)
        else:
            found.append((1 - smooth) * omega / f + smooth * omega)
    return found, 1


def paper_longrope(dim, theta, before, after):
    """2402.13753: a divisor for each, sqrt(1 + ln s / ln L)."""
    factors = plan_of("longrope", dim).factors.long_factor
    omegas = [omega / factor for omega, factor in zip(geometric(theta, dim), factors, strict=True)]
    return omegas, mpmath.sqrt(1 + mpmath.log(mpf(after) / before) / mpmath.log(before))


def paper_cope(dim, theta, before, after):
    """2602.05258, section 4.2 as released, on a larger base: 20 of 29 slow ones of Llama-3-8B."""
    slow = sum(2 * mp.pi / omega > before for omega in geometric(theta, dim))
    count = int(mpmath.nint(mpf(20) / 29 * slow))
    omegas, _ = paper_theta(dim, theta, before, after)
    for k in range(count):
        omegas[dim // 2 - count + k] *= (1 + mpmath.cos(mp.pi * k / (count - 1))) / 2
    return omegas, 1


PAPERS = {
    "theta": paper_theta,
    "linear": paper_linear,
    "ntk": paper_ntk,
    "yarn": paper_yarn,
    "llama3": paper_llama3,
    "longrope": paper_longrope,
    "cope": paper_cope,
}


def test_every_plan_is_tested():
    assert set(PAPERS) == set(ROPE_SCALINGS)


def deviation(found: torch.Tensor, truth: list) -> float:
    """The largest relative one, over all pairs that turn."""
    return max(
        float(abs(mpf(value) - omega) / omega)
        for value, omega in zip(found.tolist(), truth, strict=True)
        if omega > 1e-30
    )


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("size", SIZES)
def test_frequencies_are_the_papers(name, size):
    dim, theta, before, after = size
    config = extended(llama(dim, before, rope_theta=theta), after, plan_of(name, dim))
    found = rope_frequencies(config)
    truth, attention = PAPERS[name](*size)
    # 2 j / R is a float64 itself, and is one without error where R is a power of two.
    rounded = 1e-15 if dim & (dim - 1) == 0 else 1e-15 + 2**-53 * math.log(theta) * 1.5
    assert deviation(found.inv_freq, truth) < rounded
    assert found.attention_scaling == pytest.approx(float(attention), rel=1e-15)
    assert config.max_position_embeddings == after
    assert frequencies_by_length(config) is None


def test_a_frozen_pair_does_not_turn():
    _, _, _, after = SIZES[2]
    config = extended(llama(128, 8192, rope_theta=5e5), after, RopePlan("cope"))
    clipped = torch.tensor(config.rope_parameters["long_factor"]) > 1
    assert clipped.tolist() == [False] * 45 + [True] * 19  # 20 less the onset, which has weight 1.
    assert rope_frequencies(config).inv_freq[-1] * after < 2**-24


def test_the_critical_dimension_of_the_papers_models():
    """2502.20082: the 31st and the 35th pair in theory, and any that is found in practice."""
    for dim, theta, window, critical in ((96, 1e4, 2048, 31), (128, 5e5, 8192, 35)):
        config = llama(dim, window, rope_theta=theta)
        found = scaled_rope_parameters(config, 131_072, RopePlan("ntk"))
        given = RopePlan("ntk", critical_dimension=critical)
        assert scaled_rope_parameters(config, 131_072, given) == found
    for critical in (1, 30, 63):
        plan = RopePlan("ntk", critical_dimension=critical)
        inv_freq = rope_frequencies(extended(config, 131_072, plan)).inv_freq
        divisors = rope_frequencies(config).inv_freq / inv_freq
        assert divisors[critical].item() == pytest.approx(16, rel=1e-13)


STARTS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0},
    "longrope": {
        "short_factor": [1.0] * 32,
        "long_factor": [1 + 0.2 * j for j in range(32)],
        "original_max_position_embeddings": 1024,
        "factor": 8.0,
    },
}


def start(kind: str) -> LlamaConfig:
    return llama(64, 8192, rope_theta=5e4, **{"rope_type": kind} | STARTS[kind])


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("kind", sorted(STARTS))
def test_any_type_is_extended(kind, name):
    """What a plan makes of any frequencies; what stock types keep has tests below."""
    before, after = start(kind), extended(start(kind), 32_768, plan_of(name, 64))
    new, scaling = rope_frequencies(after)
    base = start("default" if kind == "dynamic" else kind)
    old, old_scaling = rope_frequencies(base)
    pairs, f = torch.arange(32, dtype=torch.float64), 4.0
    turns = 8192 * old / (2 * math.pi)
    theta = 5e4 * (f * f - (f - 1)) ** (64 / 62)
    expected_scaling = old_scaling
    if name == "linear":
        expected = old / f
    elif name == "ntk":
        expected = old * f ** (-pairs / int((turns > 1).sum()))
    elif name == "longrope":
        factors = torch.tensor(plan_of(name, 64).factors.long_factor, dtype=torch.float64)
        expected = 5e4 ** (-pairs / 32) / factors
        original = STARTS[kind].get("original_max_position_embeddings", 8192)
        expected_scaling = math.sqrt(math.log(32_768) / math.log(original))
    elif name == "cope":
        expected = old * (theta / 5e4) ** (-pairs / 32)
        count = round(20 / 29 * int((turns < 1).sum()))
        weight = torch.linspace(0, math.pi, count, dtype=torch.float64).cos() / 2 + 0.5
        expected[-count:] *= weight
        expected[-1] = new[-1]
    elif kind == {"theta": "llama3", "yarn": "yarn", "llama3": "llama3"}.get(name):
        expected, expected_scaling = new, scaling  # Their own stock type: below.
    elif name == "theta":
        expected = old * (theta / 5e4) ** (-pairs / 32)
    else:
        low, high = (1, 32) if name == "yarn" else (1, 4)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        expected = old / f * (1 - kept) + old * kept
        if name == "yarn":
            expected_scaling = old_scaling * (0.1 * math.log(f) + 1)
            if kind in ("default", "dynamic"):
                expected = new  # The ramp over the index, as the paper's code: above.
    torch.testing.assert_close(new, expected, rtol=1e-12, atol=0)
    assert scaling == pytest.approx(expected_scaling, rel=1e-14)
    assert frequencies_by_length(after) is None
    assert before.to_dict() == start(kind).to_dict()
    assert json.loads(json.dumps(after.rope_parameters)) == after.rope_parameters


def test_yarn_again_is_yarn_from_the_original_window():
    config = start("yarn")
    found = scaled_rope_parameters(config, 32_768, RopePlan("yarn"))
    assert found == config.rope_parameters | {"factor": 32.0}
    spelled = copy.deepcopy(config)
    spelled.rope_parameters["attention_factor"] = 0.1 * math.log(8) + 1
    assert scaled_rope_parameters(spelled, 32_768, RopePlan("yarn")) == found
    spelled.rope_parameters["attention_factor"] = 1.0
    kept = scaled_rope_parameters(spelled, 32_768, RopePlan("yarn"))
    assert kept == found | {"attention_factor": 1.0}


def test_stock_types_grow_their_factor():
    of = {kind: start(kind).rope_parameters for kind in ("linear", "llama3")}
    for kind, factor in (("linear", 16.0), ("llama3", 32.0)):
        found = scaled_rope_parameters(start(kind), 32_768, RopePlan(kind))
        assert found == of[kind] | {"factor": factor}
    theta = 5e4 * 13 ** (64 / 62)
    for kind in ("linear", "llama3"):
        found = scaled_rope_parameters(start(kind), 32_768)
        assert found == of[kind] | {"rope_theta": pytest.approx(theta)}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("kind", sorted(STARTS))
def test_a_window_that_is_there_already_changes_nothing(kind, name):
    config = start(kind)
    for target in (4096, 8192):
        assert scaled_rope_parameters(config, target, plan_of(name, 64)) == config.rope_parameters


@pytest.mark.parametrize("kind", sorted(STARTS))
def test_an_explicit_base_is_taken_in_any_window(kind):
    config = extended(start(kind), 8192, RopePlan(theta=1e6))
    assert config.rope_parameters["rope_theta"] == 1e6
    assert config.max_position_embeddings == 8192


# As the hub has them, in what says something of RoPE, and small in all else.
PHI_4_MINI_LONG_FACTOR = [
    *(1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817),
    *(2.187582649, 2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687),
    *(4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894),
    *(8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215),
    *(18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13),
    *(32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5),
    *(44.16, 47.77),
]
HUB = {
    "Llama-3.1-8B": {
        "model_type": "llama",
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "sliding_window": 131_072,
        "use_sliding_window": False,
        "max_window_layers": 28,
    },
    "Qwen3-8B": {
        "model_type": "qwen3",
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
    },
    "Phi-4-mini-instruct": {
        "model_type": "phi3",
        "hidden_size": 256,
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_theta": 10_000.0,
        "rope_scaling": {
            "long_factor": PHI_4_MINI_LONG_FACTOR,
            "short_factor": [1.0] * 48,
            "type": "longrope",
        },
        "sliding_window": 262_144,
    },
    "Phi-3-mini-4k-instruct": {
        "model_type": "phi3",
        "hidden_size": 192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
    },
    "gemma-3-4b": {
        "model_type": "gemma3_text",
        "head_dim": 256,
        "num_hidden_layers": 6,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
    "Olmo-3-7B": {
        "model_type": "olmo3",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "max_position_embeddings": 65_536,
        "rope_theta": 500_000,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "sliding_window": 4096,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "rope_theta": 150_000,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "sliding_window": 128,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
    "Ministral-3-8B": {
        "model_type": "ministral3",
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 16.0,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16_384,
            "rope_theta": 1_000_000.0,
            "rope_type": "yarn",
            "type": "yarn",
        },
    },
    "SmolLM3-3B": {
        "model_type": "smollm3",
        "head_dim": 128,
        "num_hidden_layers": 4,
        "max_position_embeddings": 65_536,
        "rope_theta": 5_000_000.0,
        "rope_scaling": None,
        "no_rope_layers": [1, 1, 1, 0],
    },
}
TARGETS = {"Qwen2.5-7B-Instruct": 131_072, "Qwen3-8B": 131_072, "Phi-3-mini-4k-instruct": 131_072}


def hub(name: str) -> PretrainedConfig:
    options = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        **{f"{name}_token_id": None for name in ("bos", "eos", "pad")},
    } | copy.deepcopy(HUB[name])
    return AutoConfig.for_model(options.pop("model_type"), **options)


def target_of(name: str) -> int:
    return TARGETS.get(name) or 2 * HUB[name]["max_position_embeddings"]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", HUB)
def test_models_of_the_hub(name, plan, tmp_path):
    """Extended, saved, loaded by stock transformers: the same config, frequencies and logits."""
    config, target = hub(name), target_of(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    chosen = plan_of(plan, rotary_dim(config, rope_layer_types(config)[0]))
    extend(model, target, chosen)
    tokens = torch.arange(24)[None] % 32
    positions = torch.cat([torch.arange(12), target - 12 + torch.arange(12)])[None]
    with torch.no_grad():
        logits = model(tokens, position_ids=positions, use_cache=False).logits
    assert logits.isfinite().all()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        again = loaded(tokens, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    assert loaded.config.max_position_embeddings == target
    assert loaded.config.rope_parameters == model.config.rope_parameters
    for kind in rope_layer_types(config):
        ours = rope_frequencies(loaded.config, kind)
        theirs, scaling = stock(loaded, kind)
        torch.testing.assert_close(theirs, ours.inv_freq, rtol=STOCK_ROUNDING, atol=0)
        assert scaling == pytest.approx(ours.attention_scaling, rel=1e-12)
        assert frequencies_by_length(loaded.config, layer_type=kind) is None


STOCK_ROUNDING = 2e-6
"""transformers computes in float32, `theta ** (2 j / R)` too."""


def stock(model: torch.nn.Module, kind: str | None) -> tuple[torch.Tensor, float]:
    rotary, prefix = model.model.rotary_emb, "" if kind is None else f"{kind}_"
    inv_freq = getattr(rotary, f"{prefix}inv_freq").double()
    return inv_freq, getattr(rotary, f"{prefix}attention_scaling")


def test_what_vllm_reads_is_there():
    """It takes short_mscale and long_mscale for attention_factor, and has LongRoPE's without."""
    config = start("default")
    found = scaled_rope_parameters(config, 32_768, RopePlan("cope"))
    assert found["attention_factor"] == found["short_mscale"] == found["long_mscale"] == 1.0
    found = scaled_rope_parameters(config, 32_768, plan_of("longrope", 64))
    assert "long_mscale" not in found


def test_what_is_not_of_a_type_stays():
    ministral = scaled_rope_parameters(hub("Ministral-3-8B"), 524_288, RopePlan("linear"))
    assert ministral["llama_4_scaling_beta"] == 0.1
    # The query scale counts in it.
    assert ministral["original_max_position_embeddings"] == 16_384
    assert "type" not in ministral
    assert "mscale" not in ministral
    phi = scaled_rope_parameters(hub("Phi-4-mini-instruct"), 262_144, RopePlan("yarn"))
    assert phi["partial_rotary_factor"] == 0.75


@pytest.mark.parametrize("plan", PLANS)
def test_ministral_keeps_the_window_that_its_queries_count_in(plan):
    parameters = {"rope_theta": 1e6, "rope_type": "default", "llama_4_scaling_beta": 0.1}
    parameters["original_max_position_embeddings"] = 4096
    config = AutoConfig.for_model(
        "ministral3", max_position_embeddings=16_384, head_dim=64, rope_parameters=parameters
    )
    found = scaled_rope_parameters(config, 65_536, plan_of(plan, 64))
    assert found["original_max_position_embeddings"] == 4096
    if plan in ("yarn", "llama3"):
        assert found["factor"] == 16.0


@pytest.mark.parametrize("plan", PLANS)
def test_an_original_window_that_plain_rope_is_left_with_is_not_counted_in(plan):
    stale = llama(64, 8192, rope_theta=5e4, original_max_position_embeddings=1024)
    chosen = plan_of(plan, 64)
    found, expected = (
        rope_frequencies(extended(config, 32_768, chosen)) for config in (stale, start("default"))
    )
    assert torch.equal(found.inv_freq, expected.inv_freq)
    assert found.attention_scaling == expected.attention_scaling


@pytest.mark.parametrize("plan", PLANS)
def test_a_yarn_model_that_reaches_farther_than_it_says_is_not_stretched_twice(plan):
    """As the cards of Qwen tell to write it."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    config = llama(64, 32_768, rope_theta=1e6, **yarn)
    if plan == "yarn":
        found = scaled_rope_parameters(config, 131_072, RopePlan(plan))
        assert found == config.rope_parameters
        return
    message = (
        "config.max_position_embeddings is 32768, but the model's yarn reaches 131072 tokens .4 "
        "times 32768., so that it would be stretched twice: set it to 131072, or take rope_scaling"
    )
    with pytest.raises(ValueError, match=message):
        scaled_rope_parameters(config, 131_072, plan_of(plan, 64))
    config.max_position_embeddings = 131_072
    assert scaled_rope_parameters(config, 262_144, plan_of(plan, 64)) != config.rope_parameters


def test_ministral_goes_on_with_yarn():
    config = hub("Ministral-3-8B")
    found = scaled_rope_parameters(config, 524_288, RopePlan("yarn"))
    kept = {name: value for name, value in config.rope_parameters.items() if name != "type"}
    assert found == kept | {"factor": 32.0}
    assert rope_frequencies(extended(config, 524_288, RopePlan("yarn"))).attention_scaling == 1.0
    # transformers' own default repeats the window.
    found = scaled_rope_parameters(AutoConfig.for_model("ministral3"), 524_288, RopePlan("theta"))
    assert found["max_position_embeddings"] == 524_288


def test_sliding_layers_keep_their_frequencies():
    config = hub("gemma-3-4b")
    for plan in PLANS:
        found = scaled_rope_parameters(config, 262_144, plan_of(plan, 256))
        assert found["sliding_attention"] == config.rope_parameters["sliding_attention"]
        assert found["full_attention"] != config.rope_parameters["full_attention"]
    assert scaled_rope_parameters(config, 262_144, RopePlan("linear"))["full_attention"] == {
        "rope_type": "linear",
        "rope_theta": 1_000_000.0,
        "factor": 16.0,
    }


def test_olmo_goes_on_with_yarn_where_it_has_it():
    """In transformers 5.10 all of its layers share one set."""
    config = hub("Olmo-3-7B")
    found = scaled_rope_parameters(config, 131_072, RopePlan("yarn"))
    if rope_layer_types(config) != (None,):
        assert found["sliding_attention"] == {"rope_type": "default", "rope_theta": 500_000}
        found = found["full_attention"]
    assert found == {
        "rope_type": "yarn",
        "rope_theta": 500_000,
        "factor": 16.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }


def test_phi_says_its_original_window_twice():
    config = extended(hub("Phi-3-mini-4k-instruct"), 131_072, RopePlan("yarn"))
    assert config.original_max_position_embeddings == 4096
    assert config.rope_parameters["rope_type"] == "longrope"
    longer = hub("Phi-3-mini-4k-instruct")
    longer.max_position_embeddings = 8192
    found = extended(longer, 131_072, RopePlan("yarn"))
    assert found.original_max_position_embeddings == 8192
    assert found.rope_parameters["original_max_position_embeddings"] == 8192


def test_in_words():
    described = rope_description(extended(hub("gemma-3-4b"), 262_144, RopePlan("linear")))
    assert described == (
        "full_attention: linear, base 1,000,000, factor 16; sliding_attention: default, base 10,000"
    )
    described = rope_description(extended(start("default"), 32_768, RopePlan("cope")))
    assert described.startswith("longrope, base 706,")
    assert described.endswith(
        "factor 4, attention factor 1, divisors 1 to 1.09951e+12, original window 8,192"
    )


def test_the_default_is_a_larger_base():
    assert scaled_rope_parameters(start("default"), 32_768) == scaled_rope_parameters(
        start("default"), 32_768, SCALED_THETA
    )


def test_missing_factors_are_refused():
    with pytest.raises(ValueError, match="rope_factors is missing"):
        scaled_rope_parameters(start("default"), 32_768, RopePlan("longrope"))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (RopePlan("spiral"), "rope_scaling is 'spiral'; it must be one of theta, linear, ntk"),
        (RopePlan("longrope", factors=RopeFactors((1.0,))), "has 1 numbers in .* needs 32"),
        (
            RopePlan("longrope", factors=RopeFactors((1.0,) * 32, target_length=64)),
            "found for target_length 64, which is 32768 here",
        ),
        (
            RopePlan("longrope", factors=RopeFactors((1.0,) * 32, None, None, 512)),
            "found for original_max_position_embeddings 512, which is 8192 here",
        ),
        (RopePlan("ntk", critical_dimension=32), "rope_critical_dimension is 32; .* 1 and 31"),
    ],
)
def test_bad_plans_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        scaled_rope_parameters(start("default"), 32_768, plan)


class _InFloat64:
    """PyTorch to a module that asks for float32 by name."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@pytest.mark.parametrize("name", PLANS)
def test_formulas_of_transformers_in_float64(name, monkeypatch):
    """It computes in float32, which is all that is between it and our frequencies."""
    monkeypatch.setattr(modeling_rope_utils, "torch", _InFloat64())
    for dim, theta, before, after in SIZES:
        config = extended(llama(dim, before, rope_theta=theta), after, plan_of(name, dim))
        kind = config.rope_parameters["rope_type"]
        if kind == "default" or dim == 96:  # No function; exponents that need rounding.
            continue
        theirs, scaling = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config)
        ours = rope_frequencies(config)
        assert theirs.dtype == torch.float64
        rounding = 2e-7 if kind == "longrope" else 1e-15  # It takes powers by `.float()`.
        torch.testing.assert_close(theirs, ours.inv_freq, rtol=rounding, atol=0)
        assert scaling == pytest.approx(ours.attention_scaling, rel=1e-15)
