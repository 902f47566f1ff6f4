"""The ladder: rungs in order of what they cost, and the first one whose step fits."""

from itertools import pairwise

import pytest
from transformers import LlamaConfig

from lrk.plan.planner import CONTEXT_GIB
from lrk.train.auto_recipe.ladder import climb, fits, rungs
from lrk.train.card import Card

LENGTH = 16_384
CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
)
VALUES = {
    "output_dir": "unused",
    "target_length": LENGTH,
    "train_length": LENGTH,
    "position_method": "contiguous",
    "gradient_accumulation_steps": 4,
    "max_steps": 10,
}


def climbed(gib, given=None, values=VALUES):
    return climb("tiny", CONFIG, values, given or {}, Card("h100", gib))


@pytest.fixture(scope="module")
def all_rungs():
    """Every rung planned: no card is so small and large enough for the weights."""
    return climbed(CONTEXT_GIB + 0.01)


def test_each_rung_is_planned_and_none_fits(all_rungs):
    assert [each.rung.name for each in all_rungs] == [each.name for each in rungs(VALUES)]
    possible = [each for each in all_rungs if each.plan is not None]
    assert len(possible) >= len(all_rungs) - 1  # 4 bits need bitsandbytes
    assert not any(fits(each, Card("h100", CONTEXT_GIB + 0.01)) for each in all_rungs)


def test_within_a_group_flops_rise_and_memory_falls(all_rungs):
    """Of one dtype, optimizer and adapters. Of few layers two a checkpoint may save nothing."""
    groups: dict[tuple, list] = {}
    for each in all_rungs:
        if each.plan is not None:
            settings = each.plan.settings
            key = (
                *(settings.dtype, settings.optim, settings.offload_optimizer),
                *(settings.optimizer_in_backward, settings.lora_rank, settings.load_in_4bit),
            )
            groups.setdefault(key, []).append(each.plan)
    assert max(map(len, groups.values())) == 6
    for plans in groups.values():
        whole = [plan for plan in plans if not plan.settings.offload_activations]
        for before, after in pairwise(whole):
            assert after.flops >= before.flops
        if len(plans) > 1:
            assert plans[-1].peak_gib < plans[0].peak_gib


def test_the_first_that_fits_is_taken(all_rungs):
    planned = [each for each in all_rungs if each.plan is not None]
    sizes = sorted(each.plan.device_gib for each in planned)
    for gib in (sizes[-1], sizes[len(sizes) // 2]):
        first = next(each for each in planned if each.plan.device_gib <= gib)
        assert climbed(gib)[-1].rung == first.rung


@pytest.mark.slow
def test_what_is_given_holds_in_every_rung():
    found = climbed(CONTEXT_GIB + 0.01, {"dtype": "bfloat16", "optim": "sgd"})
    plans = [each.plan for each in found if each.plan is not None]
    assert {plan.settings.dtype for plan in plans} == {"bfloat16"}
    assert {plan.settings.optim for plan in plans} == {"sgd"}
    settings = [plan.settings for plan in plans]
    assert len(settings) == len(set(settings))  # what became the same is planned once


def test_what_a_given_value_makes_impossible_is_passed_over():
    found = climbed(80.0, {"keep_attention": True})
    assert "keep_attention is true; it needs activation_checkpointing" in found[0].reason
    assert found[0].plan is None
    assert found[-1].plan.settings.keep_attention
    assert fits(found[-1], Card("h100", 80.0))


def test_autocast_is_that_of_a_gpu():
    """Whatever this machine has."""
    assert climbed(80.0)[-1].plan.settings.bf16
    assert not climbed(80.0, {"bf16": False})[-1].plan.settings.bf16
    assert climbed(80.0)[-1].plan.settings.gpu == "h100"


def test_nothing_is_traced_where_the_weights_alone_are_too_large():
    found = climbed(CONTEXT_GIB + 1e-5)
    assert all(each.plan is None for each in found)
    assert "weights, gradients and optimizer alone take 0.8 GiB" in found[0].reason


def test_tokens_stay_where_each_sample_is_a_step():
    (rung,) = [each for each in rungs(VALUES) if "in the backward pass" in each.name]
    assert rung.values["gradient_accumulation_steps"] == 1
    assert rung.values["max_steps"] == 40
