"""Rules compute their choices: other evidence, other choices."""

from dataclasses import replace

import pytest

from lrk.train.auto_recipe import rules
from lrk.train.auto_recipe.evidence import Comparison

BOTH = "PoSE + reach + temperature"


def test_the_best_sampler_is_taken_whatever_its_variant(evidence):
    found = rules.sampler(evidence())
    assert found.value == "PoSE"
    assert "96.0 %" in found.reason
    assert "LongRecipe + reach + temperature: 94.0 %" in found.reason
    assert f"proof/variables/{BOTH}/1024" in found.evidence
    ahead = {"LongRecipe + reach + temperature": (96.5, 70.0)}
    assert rules.sampler(evidence(methods=ahead)).value == "LongRecipe"
    assert rules.sampler(evidence(methods={"CREAM": (99.0, 20.0)})).value == "CREAM"


def test_full_length_is_no_sampler(evidence):
    assert rules.sampler(evidence(methods={"full length": (99.9, 99.9)})).value == "PoSE"


@pytest.mark.parametrize("added", [rules.REACH, rules.TEMPERATURE])
@pytest.mark.parametrize(
    ("figures", "taken", "said"),
    [
        (((4.0, 0.01), (0.5, 0.9)), True, "1,024"),
        (((0.1, 0.9), (18.0, 0.049)), True, "2,048"),
        (((0.1, 0.9), (18.0, 0.051)), False, "no gain"),
        (((-1.0, 0.01), (18.0, 0.01)), False, "a loss"),
        (((-1.0, 0.2), (18.0, 0.01)), True, "2,048"),
    ],
)
def test_a_part_is_taken_if_it_gains_and_loses_nowhere(evidence, added, figures, taken, said):
    without = BOTH.replace(added, "")
    found = rules.part(evidence(compared={(BOTH, without): figures}), "PoSE", added)
    assert found.value is taken
    assert said in found.reason
    assert f"proof/quotes/{BOTH} minus {without}/2048" in found.evidence
    turned = tuple((-difference, p) for difference, p in figures)
    changes = {(BOTH, without): None, (without, BOTH): turned}
    assert rules.part(evidence(compared=changes), "PoSE", added).value is taken


def test_a_part_may_not_cost_the_short_loss(evidence):
    """Beside the same sampler without it, however far both are from the control."""
    without = {"PoSE + temperature": (2.030, 1.9)}
    found = rules.part(evidence(losses=without | {BOTH: (2.051, 1.9)}), "PoSE", rules.REACH)
    assert found.value is False
    assert "+0.021 from PoSE + temperature (+0.051 from the control" in found.reason
    found = rules.part(evidence(losses=without | {BOTH: (2.049, 1.9)}), "PoSE", rules.REACH)
    assert found.value is True


def test_temperature_is_asked_for_with_reach_if_that_is_added_and_alone_else(evidence):
    alone = {("LongRecipe + temperature", "LongRecipe"): ((5.0, 0.01), (9.0, 0.01))}
    whole, warm = "LongRecipe + reach + temperature", "LongRecipe + temperature"
    refused = {(whole, warm): ((-21.0, 0.01), (20.0, 0.01))}
    found = rules.part(evidence(compared=alone | refused), "LongRecipe", rules.TEMPERATURE)
    assert found.value is True
    assert found.reason.startswith("LongRecipe + temperature minus LongRecipe:")
    added = {(whole, warm): ((1.0, 0.2), (20.0, 0.01))}
    found = rules.part(evidence(compared=alone | added), "LongRecipe", rules.TEMPERATURE)
    assert found.reason.startswith("LongRecipe + reach + temperature minus LongRecipe + reach:")


def test_full_length_has_to_read_real_text_better_too(evidence):
    method = "PoSE + reach + temperature"
    far = {("full length", method): ((9.0, 0.01), (9.0, 0.01))}
    for nats, worth in ((1.930, True), (1.910, False)):
        made = evidence(compared=far, losses={"full length": (2.01, 1.9), method: (2.01, nats)})
        found = rules.full_length(made, method)
        assert found.value is worth
        assert ("no more than 0.02 apart" in found.reason) is not worth


def test_a_sampler_measured_with_both_parts_alone_takes_anothers_comparisons(evidence):
    whole = "LongRecipe + reach + temperature"
    none = {(whole, "LongRecipe + reach"): None, (whole, "LongRecipe + temperature"): None}
    found = rules.part(evidence(compared=none), "LongRecipe", rules.REACH)
    assert found.value is True
    assert BOTH in found.reason
    found = rules.part(evidence(), "E2", rules.REACH)  # which has no row with them
    assert (found.value, found.reason) == (False, "not measured")
    assert rules.method_of(evidence(), "E2") == "E2"


@pytest.mark.parametrize(
    ("difference", "taken"), [(2.6, True), (2.4, False), (-3.0, False)], ids=str
)
def test_full_length_has_to_be_better_by_more_than_the_margin(evidence, difference, taken):
    compared = {("full length", BOTH): ((difference, 0.01), (0.0, 1.0))}
    found = rules.full_length(evidence(compared=compared), BOTH)
    assert found.value is taken
    assert f"at least {difference - 0.5:.1f} points" in found.reason
    assert "3.0 times the tokens" in found.reason


def test_the_third_of_the_tokens_is_quoted(evidence):
    third = {f"{BOTH}, a third of the tokens": (94.4, 80.0)}
    assert (
        "a third of the tokens: 94.4 %" in rules.full_length(evidence(methods=third), BOTH).reason
    )


@pytest.mark.parametrize(
    ("figures", "taken"),
    [((3.0, 0.01), True), ((2.9, 0.01), False), ((5.0, 0.06), False), ((-4.0, 0.01), False)],
)
def test_views_have_to_bring_three_points(evidence, figures, taken):
    compared = {(f"{BOTH} + views", BOTH): (figures, (0.0, 1.0))}
    found = rules.views(evidence(compared=compared), BOTH)
    assert found.value is taken
    assert found.evidence[0].startswith(f"proof/quotes/{BOTH} + views minus")
    assert rules.views(evidence(compared={(f"{BOTH} + views", BOTH): None}), BOTH).value is False


@pytest.mark.parametrize(
    ("short", "difference", "p", "share"),
    [
        (2.01, -0.02, 0.01, 0.0),
        (2.01, -0.02, 0.06, 0.3),
        (2.01, 0.02, 0.01, 0.3),
        (2.04, -0.02, 0.01, 0.3),  # it costs the short loss
    ],
)
def test_all_samples_are_spread_only_if_that_is_better(evidence, short, difference, p, share):
    """Of real text, in nats."""
    spread = f"{BOTH}, all spread"
    made = evidence(losses={spread: (short, 1.9)})
    figures = {"low": difference - 0.01, "high": difference + 0.01, "p": p, "p_corrected": p}
    compared = Comparison("x", spread, BOTH, "text", 4096, difference, **figures)
    made = replace(made, comparisons=(*made.comparisons, compared))
    found = rules.contiguous_share(made, BOTH)
    assert found.value == share
    assert found.evidence[0] == "x"
    assert rules.contiguous_share(evidence(), BOTH).value == 0.3


@pytest.mark.parametrize(
    ("plans", "chosen"),
    [
        ({}, "theta"),  # level with cope beyond the target
        ({"cope": (94.1, 66.0)}, "cope"),
        ({"theta": (93.0, 64.0)}, "cope"),  # not level at the target
        ({"yarn": (97.0, 1.0)}, "yarn"),  # alone at the target
        ({"llama3": (94.0, 70.0)}, "llama3"),
    ],
)
def test_the_plan_is_the_best_beyond_of_those_level_at_the_target(evidence, plans, chosen):
    found = rules.rope_plan(evidence(plans=plans))
    assert found.value == chosen
    assert f"proof/quotes/PoSE, {chosen}/1024" in found.evidence


def test_evidence_without_a_row_is_an_error(evidence):
    with pytest.raises(ValueError, match="no row of 'full length' for task 'quotes'"):
        rules.full_length(evidence(methods={"full length": None}), BOTH)
    bare = evidence()
    bare = type(bare)(bare.made_by, bare.reach, bare.temperature_power, (), ())
    with pytest.raises(ValueError, match="no row of 'PoSE' for task 'quotes'"):
        rules.findings(bare)
