"""LongRecipe's tokens, whatever the length of a sample, as far as the data reach."""

import pytest

from lrk.train.auto_recipe.choices import Choices
from lrk.train.auto_recipe.schedule import choose_schedule, steps_for


@pytest.mark.parametrize("length", [307, 4096, 38_400, 39_322, 131_072])
def test_tokens_of_pass_step_and_run(length):
    batch, accumulation, steps = steps_for(length, None)
    assert batch * length <= max(38_400, length)
    assert batch * accumulation * length == pytest.approx(96 * 38_400, rel=0.02)
    assert steps * batch * accumulation * length == pytest.approx(104 * 96 * 38_400, rel=0.02)


def test_longrecipe_itself():
    assert steps_for(38_400, None) == (1, 96, 104)


def test_a_step_is_no_more_than_a_pass_and_a_run_no_more_than_four():
    batch, accumulation, steps = steps_for(100, 1_050)
    assert (batch, accumulation, steps) == (10, 1, 4)
    batch, accumulation, steps = steps_for(38_400, 38_400 * 40)
    assert (batch, accumulation, steps) == (1, 40, 4)


def test_rates_by_size_and_stage():
    for parameters, anneals, expected in (
        (8 * 10**9, False, (5e-5, "constant")),
        (10**8, False, (2e-4, "cosine")),
        (8 * 10**9, True, (5e-6, "linear")),
    ):
        choices = Choices({})
        choose_schedule(choices, 38_400, None, parameters, anneals)
        assert (choices.values["learning_rate"], choices.values["lr_scheduler_type"]) == expected
    assert choices.values["max_steps"] * 96 * 38_400 == pytest.approx(68e6, rel=0.1)


def test_epochs_that_are_given_are_not_steps():
    choices = Choices({"num_train_epochs": 2.0})
    choose_schedule(choices, 38_400, None, 10**9, False)
    assert "max_steps" not in choices.values
    assert "save_steps" not in choices.values
