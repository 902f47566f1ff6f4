"""PCD: frequencies and logits by the paper's formulas, and generation with the second cache."""

import math

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

import lrk
from lrk.decode import pcd, self_extend
from lrk.decode.contrast import contrasted, perturbed_frequencies
from lrk.hf.cache_name import CACHE_NAME, cache_of, named_cache
from lrk.hf.canary import tiny_config, tiny_model
from lrk.kernels.rope import phase_increments

LENGTH = 23


def tokens(rows: int = 1, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(2, 61, (rows, length), generator=torch.Generator().manual_seed(1))


def test_frequencies_are_those_of_the_formula(model):
    alpha, ratio, d, base = 0.3, 1e-3, 8, 1e4
    ours = perturbed_frequencies(model.config, alpha, ratio)
    for j in range(1, d // 2 + 1):
        transition = 2 - math.exp(alpha * 2 * j / d)
        normal, faster = base ** (-2 * (j - 1) / d), (ratio * base) ** (-2 * (j - 1) / d)
        assert float(ours[j - 1]) == pytest.approx(
            transition * normal + (1 - transition) * faster, rel=1e-14
        )


def test_contrast_is_the_formula_on_the_likeliest_tokens():
    torch.manual_seed(0)
    logits, perturbed = torch.randn(2, 3, 4, 11)
    ours = contrasted(logits, perturbed, beta=2.5, gamma=4)
    for row in range(3):
        for place in range(4):
            kept = sorted(range(11), key=lambda token: -logits[row, place, token])[:4]
            for token in range(11):
                one, two = float(logits[row, place, token]), float(perturbed[row, place, token])
                expected = 3.5 * one - 2.5 * two if token in kept else -math.inf
                assert float(ours[row, place, token]) == pytest.approx(expected, abs=1e-5)
    assert contrasted(logits.bfloat16(), perturbed.bfloat16(), 2.5, 4).dtype == torch.float32
    assert contrasted(logits, perturbed, 2.5, 99).isfinite().all()


@pytest.fixture
def by_definition(model, directly):
    """Logits (S, V) of a row: two models, of which one turns at the perturbed frequencies."""

    def logits(row: torch.Tensor, beta: float, gamma: int) -> torch.Tensor:
        perturbed = type(directly)(perturbed_frequencies(model.config, 0.2, 1e-4))
        one, two = (each.logits(model, row, lambda m, n: m - n) for each in (directly, perturbed))
        return contrasted(one, two, beta, gamma)

    return logits


@torch.no_grad()
def test_logits_are_those_of_two_models(model, by_definition):
    model.double()
    ordinary = model(tokens()).logits
    with pcd(model, beta=2.5, gamma=5) as inside:
        assert inside is model
        for options in ({}, {"use_cache": False}, named_cache(DynamicCache())):
            logits = model(tokens(), **options).logits
            assert (logits.isfinite().sum(-1) == 5).all()
            torch.testing.assert_close(
                logits[0], by_definition(tokens()[0], 2.5, 5), rtol=1e-4, atol=1e-4
            )
    assert torch.equal(model(tokens()).logits, ordinary)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"num_beams": 3},
        # Some releases of transformers look ids up without one to stop at, and fail.
        {"prompt_lookup_num_tokens": 3, "eos_token_id": 1},
    ],
    ids=str,
)
def test_generation_with_two_caches_is_that_without(model, options):
    settings = {"max_new_tokens": 12, "do_sample": False, "disable_compile": True}
    beams = {
        name: value for name, value in options.items() if name in ("num_beams", "eos_token_id")
    }
    with pcd(model, gamma=7):
        cached = model.generate(tokens(), **settings, **options)
        plain = model.generate(tokens(), **settings, **beams, use_cache=False)
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, model.generate(tokens(), **settings, **beams))


@torch.no_grad()
def test_left_padding_changes_nothing(model):
    rows = tokens(2)
    mask = torch.ones_like(rows)
    mask[1, :9] = 0
    settings = {"max_new_tokens": 8, "do_sample": False}
    with pcd(model):
        together = model.generate(rows * mask, attention_mask=mask, **settings)
        alone = model.generate(rows[1:, 9:], **settings)
    assert torch.equal(together[1, 9:], alone[0])


@torch.no_grad()
def test_without_contrast_the_likeliest_token_is_chosen(model):
    settings = {"max_new_tokens": 8, "do_sample": False}
    ordinary = model.generate(tokens(), **settings)
    for numbers in ({"beta": 0.0}, {"gamma": 1}):
        with pcd(model, **numbers):
            assert torch.equal(model.generate(tokens(), **settings), ordinary)


@torch.no_grad()
def test_it_combines_with_position_maps(model):
    """Both passes then have the positions of the map."""
    with self_extend(model, window=100, group=4), pcd(model):
        combined = model(tokens()).logits
    with pcd(model):
        torch.testing.assert_close(combined, model(tokens()).logits, rtol=1e-4, atol=1e-4)


def test_a_model_with_its_own_loss_is_patched_back_as_it_was(model):
    lrk.patch(model, cross_entropy=False)
    kind = type(model)
    with pcd(model):
        assert type(model) is not kind
    assert type(model) is kind
    with pcd(model):
        lrk.unpatch(model)
    assert type(model) is LlamaForCausalLM
    assert not any(name.startswith("_lrk_") for name in vars(model))


@torch.no_grad()
def test_refusals(model):
    filled = cache_of(model(tokens()))
    offloaded = DynamicCache()
    offloaded.offloading = True  # without the stream that a CUDA build would make
    with pcd(model):
        with pytest.raises(ValueError, match="labels are given; contrasted logits are for"):
            model(tokens(), labels=tokens())
        with pytest.raises(ValueError, match=f"{CACHE_NAME} holds tokens already"):
            model(tokens(), **named_cache(filled))
        with pytest.raises(ValueError, match=f"{CACHE_NAME} is offloaded"):
            model(tokens(), **named_cache(offloaded))
        with pytest.raises(ValueError, match="in a block of the same kind already"):
            pcd(model).__enter__()
    for numbers, message in (
        ({"alpha": 0}, "alpha is 0.0; it must be positive"),
        ({"beta": -1}, "beta is -1.0; it must be not negative"),
        ({"base_ratio": 1}, "base_ratio is 1.0; it must be between 0 and 1"),
        ({"gamma": 0}, "gamma is 0; it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            pcd(model, **numbers).__enter__()
    for unfit in (
        lambda: lrk.unpatch(model),
        lambda: lrk.patch(model, rope=False),
        lambda: lrk.patch(model).model,
    ):
        with pytest.raises(ValueError, match="that is not patched, or no causal language model"):
            pcd(unfit()).__enter__()


def test_frequencies_that_depend_on_the_length_are_refused(model):
    config = lrk.unpatch(model).config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    unfit = lrk.patch(LlamaForCausalLM(config))
    with pytest.raises(ValueError, match="rope_type is 'dynamic', whose frequencies depend on"):
        pcd(unfit).__enter__()


@torch.no_grad()
def test_frequencies_of_each_kind_of_layer():
    """Gemma 3 has two bases: both are perturbed, and put back."""
    torch.manual_seed(0)
    model = lrk.patch(tiny_model(tiny_config("gemma3_text")).eval())
    tokens = torch.arange(2, 14)[None]
    expected = model(tokens).logits
    with pcd(model, beta=1.0, gamma=61):
        contrasted = model(tokens).logits
    bases = [each["rope_theta"] for each in model.config.rope_parameters.values()]
    assert bases[0] != bases[1]
    rotary = model.model.rotary_emb
    own = dict(rotary._lrk_increments)
    rotary._lrk_increments = {
        kind: phase_increments(perturbed_frequencies(model.config, 0.2, 1e-4, kind)) for kind in own
    }
    torch.testing.assert_close(contrasted, 2 * expected - model(tokens).logits)
    rotary._lrk_increments = own
    assert torch.equal(model(tokens).logits, expected)
