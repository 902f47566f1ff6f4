"""A search of a tiny model: what a trial computes, and that it can be interrupted."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import lrk
from lrk.frequencies import rope_frequencies
from lrk.hf.canary import tiny_config, tiny_model
from lrk.longrope import search as module
from lrk.longrope.evolution import Evolution
from lrk.longrope.needles import needle_loss
from lrk.longrope.search import Rope, losses_by_plan, search_factors
from lrk.longrope.space import Candidate
from lrk.longrope.trial import extended, loss_with
from lrk.longrope.trials import Trials
from lrk.rope_scaling import ROPE_SCALINGS, RopePlan
from lrk.train.extension import extend

EVOLUTION = Evolution(population=8, iterations=3, seed=5)


def test_a_trial_computes_what_the_extended_model_will(model, samples, tmp_path):
    plan = Rope.of(model.config).plan(Candidate(3, (3.0,) * 5), 40, None)
    found = loss_with(model, samples, 40, plan)
    extend(model, 40, plan).save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert stock.config.rope_parameters["rope_type"] == "longrope"
    assert found == pytest.approx(needle_loss(lrk.patch(stock), samples), rel=1e-6)
    with torch.no_grad():
        logits = lrk.unpatch(stock)(samples[1].input_ids).logits
    one = loss_with(model, samples[1:], 40, plan)
    labels = samples[1].labels[:, 1:].flatten()
    stock_loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels)
    assert one == pytest.approx(stock_loss.item(), rel=1e-4)


def test_after_a_trial_the_model_is_as_it_was(model, samples):
    config, rotary = model.config.to_dict(), model.model.rotary_emb
    before = needle_loss(model, samples)
    with extended(model, 40, RopePlan("linear")):
        assert needle_loss(model, samples) != before
        assert model.config.max_position_embeddings == 40
    assert needle_loss(model, samples) == before
    with pytest.raises(KeyError), extended(model, 40, RopePlan("linear")):
        raise KeyError
    assert model.config.to_dict() == config
    assert model.model.rotary_emb is rotary
    assert needle_loss(model, samples) == before


def test_what_is_found_is_the_best_that_was_tried(model, samples, tmp_path):
    found = search_factors(model, samples, 40, EVOLUTION, Trials(tmp_path / "trials.json"))
    assert loss_with(model, samples, 40, found.plan) == pytest.approx(found.loss, rel=1e-6)
    assert found.loss <= found.initial
    assert found.factors.target_length == 40
    assert found.factors.original_max_position_embeddings == 16


def test_fewer_iterations_take_nothing_back(model, samples, tmp_path):
    file = tmp_path / "trials.json"
    Trials(file).loss(Candidate(3, (4.5,) * 5), lambda candidate: 0.0)  # better than any
    few = Evolution(population=4, iterations=0, seed=5)
    found = search_factors(model, samples, 40, few, Trials(file))
    assert (found.loss, found.critical) == (0.0, 3)
    assert found.factors.long_factor[3:] == (4.5,) * 5


def test_plans_are_compared_as_they_are_and_with_the_same_attention(model, samples, tmp_path):
    found = search_factors(model, samples, 40, EVOLUTION, Trials(tmp_path / "trials.json"))
    losses = losses_by_plan(model, samples, found)
    assert losses.keys() == {*ROPE_SCALINGS, f"ntk at {found.critical}"}
    assert losses["longrope"]["own"] == losses["longrope"]["same"]
    assert losses["longrope"]["own"] == pytest.approx(found.loss, rel=1e-6)
    for name in ("theta", "linear", "yarn"):
        own = losses[name]["own"]
        assert own == loss_with(model, samples, 40, RopePlan(name))
        assert losses[name]["same"] != own
    extend(model, 40, RopePlan("yarn"))
    frequencies, attention = rope_frequencies(model.config)
    factors = 1e4 ** (-torch.arange(8, dtype=torch.float64) / 8) / frequencies
    alike = found.factors._replace(long_factor=factors.tolist())
    model.config.max_position_embeddings = 16
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    plan = RopePlan("longrope", factors=alike)
    assert losses["yarn"]["same"] == pytest.approx(loss_with(model, samples, 40, plan), rel=1e-6)
    # With YaRN's own factor it is YaRN.
    plan = RopePlan("longrope", factors=alike._replace(attention_factor=attention))
    assert losses["yarn"]["own"] == pytest.approx(loss_with(model, samples, 40, plan), rel=1e-6)


def test_a_search_that_is_stopped_goes_on_and_ends_alike(model, samples, tmp_path, monkeypatch):
    whole = search_factors(model, samples, 40, EVOLUTION, Trials(tmp_path / "whole.json"))
    calls = 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return loss_with(*arguments)

    monkeypatch.setattr(module, "loss_with", counted)
    with pytest.raises(KeyboardInterrupt):
        search_factors(model, samples, 40, EVOLUTION, Trials(tmp_path / "trials.json"))
    assert len(Trials(tmp_path / "trials.json")) == 8
    assert search_factors(model, samples, 40, EVOLUTION, Trials(tmp_path / "trials.json")) == whole
    assert calls == whole.trials + 1
    assert (tmp_path / "trials.json").read_text() == (tmp_path / "whole.json").read_text()


def test_the_attention_factor_is_tried_and_kept(model, samples, tmp_path):
    evolution = Evolution(population=4, iterations=0)
    one = search_factors(
        model, samples, 40, evolution, Trials(tmp_path / "1"), attention_factor=1.0
    )
    other = search_factors(model, samples, 40, evolution, Trials(tmp_path / "2"))
    assert one.factors.attention_factor == 1.0
    assert other.factors.attention_factor is None
    assert one.loss != other.loss


@pytest.mark.parametrize("plan", ["yarn", "llama3", "linear", "cope"])
def test_factors_of_a_model_that_was_extended_before(model, plan):
    before = Rope.of(model.config)
    extend(model, 32, RopePlan(plan))
    rope = Rope.of(model.config)
    assert (rope.window, rope.original) == (32, 32 if plan == "linear" else 16)
    candidate = Candidate(3, (2.5,) * 5)
    extend(model, 80, rope.plan(candidate, 80, 1.0))
    found = rope_frequencies(model.config).inv_freq
    factors = torch.tensor(candidate.factors, dtype=torch.float64)
    torch.testing.assert_close(found, rope.inv_freq / factors, rtol=1e-12, atol=0)
    assert not torch.equal(rope.inv_freq, before.inv_freq)


def test_dynamic_is_as_up_to_its_window():
    scaled = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    rope = Rope.of(LlamaConfig(rope_parameters=scaled))
    assert torch.equal(rope.inv_freq, Rope.of(LlamaConfig()).inv_freq)


def test_of_layers_with_their_own_parameters_the_full_ones_are_searched(samples):
    config = tiny_config(
        "gemma3_text",
        vocab_size=50,
        num_hidden_layers=6,
        layer_types=None,
        sliding_window=8,
        max_position_embeddings=16,
    )
    rope = Rope.of(config)
    assert torch.equal(rope.inv_freq, rope_frequencies(config, "full_attention").inv_freq)
    assert not torch.equal(rope.inv_freq, rope_frequencies(config, "sliding_attention").inv_freq)
    torch.manual_seed(0)
    model = lrk.patch(tiny_model(config).eval())
    before, loss = model.config.to_dict(), needle_loss(model, samples)
    with extended(model, 40, rope.plan(Candidate(3, (3.0,) * 5), 40, None)):
        inside = model.config.rope_parameters
        assert inside["full_attention"]["rope_type"] == "longrope"
        assert inside["sliding_attention"] == before["rope_parameters"]["sliding_attention"]
        assert needle_loss(model, samples) != loss
    assert model.config.to_dict() == before
    assert needle_loss(model, samples) == loss
