"""What is chosen for a subject: by its config, its data, its card, and by what is given."""

import math

import numpy as np
import pytest
from transformers import LlamaConfig, MistralConfig, Olmo3Config, SmolLM3Config

from lrk.train import LrkTrainingArguments
from lrk.train.auto_recipe.choices import GIVEN
from lrk.train.auto_recipe.recipe import Subject, make_recipe
from lrk.train.auto_recipe.survey import Survey
from lrk.train.card import Card
from studies.tiny import SHAPE

TARGET = 512
GIVEN_VALUES = {"model_name_or_path": "tiny", "data": ["a.txt"], "output_dir": "unused"}
SHARED = SHAPE | {"pad_token_id": None}
FAR_BEHIND = {"full length": (60.0, 60.0)}  # so that it is not planned beside


def recipe_of(evidence, given=None, config=None, target=TARGET, data=None, card="h100", gib=80.0):
    subject = Subject("tiny", config or LlamaConfig(**SHARED), target, Card(card, gib), data)
    return make_recipe(subject, evidence, GIVEN_VALUES | (given or {}))


def notes_of(recipe):
    return "\n".join(recipe.notes)


def lengths(*values, is_text=True):
    array = np.array(values, np.int64)
    return Survey(array, is_text, int(array.sum()))


def test_the_choices_of_the_evidence(evidence):
    values = recipe_of(evidence(methods=FAR_BEHIND)).values
    assert values["position_method"] == "pose"
    assert values["position_reach"] == 2.0
    assert values["train_length"] == round(0.3 * TARGET)
    expected = math.log(2 * TARGET) / math.log(round(0.3 * TARGET))
    assert values["attention_temperature"] == pytest.approx(expected, abs=1e-4)
    assert (values["rope_scaling"], values["contiguous_share"]) == ("theta", 0.3)
    assert values["distill"] == "none"
    assert (values["dtype"], values["gradient_checkpointing"]) == ("float32", False)


def test_other_evidence_other_choices(evidence):
    both = "PoSE + reach + temperature"
    changed = evidence(
        methods=FAR_BEHIND,
        compared={(both, "PoSE + temperature"): ((0.0, 1.0), (0.0, 1.0))},
        plans={"cope": (94.1, 70.0)},
    )
    values = recipe_of(changed).values
    assert values["position_reach"] == 1.0
    assert values["attention_temperature"] == pytest.approx(
        math.log(TARGET) / math.log(round(0.3 * TARGET)), abs=1e-4
    )
    assert values["rope_scaling"] == "cope"
    changed = evidence(compared={("full length", both): ((9.0, 0.01), (9.0, 0.01))})
    values = recipe_of(changed).values
    assert (values["position_method"], values["train_length"]) == ("contiguous", TARGET)
    assert "position_reach" not in values
    changed = evidence(
        methods=FAR_BEHIND, compared={(f"{both} + views", both): ((4.0, 0.01), (0.0, 1.0))}
    )
    assert recipe_of(changed).values["distill"] == "views"


def test_the_studys_own_settings_are_taken(evidence):
    found = evidence(methods=FAR_BEHIND)
    found = type(found)(found.made_by, 4.0, 0.5, found.rows, found.comparisons)
    values = recipe_of(found).values
    ratio = math.log(4 * TARGET) / math.log(round(0.3 * TARGET))
    assert values["position_reach"] == 4.0
    assert values["attention_temperature"] == pytest.approx(ratio**0.5, abs=1e-4)


def test_every_choice_makes_arguments(evidence):
    recipe = recipe_of(evidence(methods=FAR_BEHIND), {"optim": "adamw_torch"})
    arguments = LrkTrainingArguments(**recipe.values)
    assert arguments.position_reach == 2.0
    assert "of tiny models" in str(recipe)
    assert recipe.title == "tiny, 64 -> 512 tokens (8 times), on one h100 of 80.0 GiB"


def test_given_values_beat_the_choices(evidence):
    given = {
        "position_method": "longrecipe",
        "position_reach": 1.5,
        "train_length": 100,
        "learning_rate": 1e-3,
        "dtype": "bfloat16",
        "seed": 7,
    }
    recipe = recipe_of(evidence(methods=FAR_BEHIND), given)
    values = recipe.values
    assert {name: values[name] for name in given} == given
    assert {each.reason for each in recipe.choices if each.name in given} == {GIVEN}
    # What follows from them does.
    assert values["attention_temperature"] == pytest.approx(
        math.log(1.5 * TARGET) / math.log(100), abs=1e-4
    )


def test_a_method_that_was_not_studied_is_left_alone(evidence):
    recipe = recipe_of(evidence(methods=FAR_BEHIND), {"position_method": "longrecipe_released"})
    assert "position_reach" not in recipe.values
    recipe = recipe_of(evidence(methods=FAR_BEHIND), {"position_method": "contiguous"})
    assert recipe.values["train_length"] == TARGET
    recipe = recipe_of(evidence(methods=FAR_BEHIND), {"position_method": "cream"})
    assert recipe.values["train_length"] == 64


def test_what_full_length_costs_is_said_where_it_is_ahead(evidence):
    notes = notes_of(recipe_of(evidence()))
    assert "train_length 512 fits too" in notes
    assert "3.3 times the tokens" in notes
    assert "TFLOP" in notes
    assert "train_length 512" not in notes_of(recipe_of(evidence(methods=FAR_BEHIND)))


def test_other_factors_are_not_measured(evidence):
    found = evidence(methods=FAR_BEHIND)
    assert "other factors are not measured" not in notes_of(recipe_of(found))
    assert "this is 16 times" in notes_of(recipe_of(found, target=1024))


def test_nothing_to_extend(evidence):
    with pytest.raises(ValueError, match=r"target_length is 64, .* window of 64 already"):
        recipe_of(evidence(), target=64)
    recipe = recipe_of(
        evidence(methods=FAR_BEHIND), {"rope_theta": 1e6, "train_length": 32}, target=64
    )
    assert recipe.values["rope_scaling"] == "theta"
    assert "new distances are not counted" in notes_of(recipe)


def test_layers_that_positions_do_not_reach(evidence):
    """All with a sliding window: no new distance is ever seen. Some without RoPE: said."""
    found = evidence(methods=FAR_BEHIND)
    recipe = recipe_of(found, config=MistralConfig(**SHARED, sliding_window=32))
    assert recipe.values["position_method"] == "contiguous"
    assert recipe.values["train_length"] == TARGET
    assert "none sees a new distance" in notes_of(recipe)
    recipe = recipe_of(found, config=SmolLM3Config(**SHARED, no_rope_layers=[1, 0]))
    assert recipe.values["position_method"] == "pose"
    assert "layers that do not see positions (of 2: 1 without RoPE)" in notes_of(recipe)
    assert "do not see" not in notes_of(recipe_of(found))


def test_rope_of_the_models_own_and_its_attention_factor(evidence):
    found = evidence(methods=FAR_BEHIND)
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
    config = LlamaConfig(**SHARED, rope_parameters=yarn | {"rope_theta": 1e4})
    values = recipe_of(found, config=config).values
    assert (values["rope_scaling"], values["attention_temperature"]) == ("yarn", 1.0)
    recipe = recipe_of(found, {"rope_scaling": "yarn"})
    assert recipe.values["attention_temperature"] == 1.0
    (reason,) = [c.reason for c in recipe.choices if c.name == "attention_temperature"]
    assert "attention factor of 1.21" in reason
    assert recipe_of(found, {"rope_scaling": "linear"}).values["attention_temperature"] > 1
    kinds = Olmo3Config(**SHARED, sliding_window=16)
    assert recipe_of(found, config=kinds).values["rope_scaling"] == "theta"


def test_conversations_are_annealed(evidence):
    data = lengths(*[100] * 50, is_text=False)
    recipe = recipe_of(evidence(), data=data)
    values = recipe.values
    assert (values["position_method"], values["train_length"]) == ("contiguous", 64)
    assert (values["learning_rate"], values["lr_scheduler_type"]) == (5e-6, "linear")
    assert "extends nothing by itself" in notes_of(recipe)
    assert recipe_of(evidence(), data=data, target=64).values["position_method"] == "contiguous"


def test_documents_shorter_than_a_sample(evidence):
    found = evidence(methods=FAR_BEHIND)
    notes = notes_of(recipe_of(found, data=lengths(*[100] * 99, 200)))
    assert "of the 100 documents 1 have the 154 tokens of a sample, with 2% of the text" in notes
    assert "lrk-data assemble" in notes
    notes = notes_of(recipe_of(found, data=lengths(100, 200)))
    assert "with 67% of the text" in notes
    assert "assemble" not in notes
    with pytest.raises(ValueError, match=r"data hold 100 tokens together, but one sample .* 154"):
        recipe_of(found, data=lengths(100))


def test_steps_follow_the_data(evidence):
    values = recipe_of(evidence(methods=FAR_BEHIND), data=lengths(1540)).values
    batch = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    assert batch <= 10
    assert values["max_steps"] * batch <= 4 * 10 + batch


def test_secrets_and_actions_stay_out_of_the_file(evidence):
    given = {"hub_token": "hf_secret", "overwrite_output_dir": True}
    recipe = recipe_of(evidence(methods=FAR_BEHIND), given)
    text = recipe.to_yaml("lrk-train x")
    assert "hf_secret" not in text
    assert "overwrite_output_dir" not in text
