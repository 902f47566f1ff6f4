"""The two arguments of docs/proof.md: how far positions reach, and the temperature in training."""

import pytest
import torch

from lrk.train import train
from lrk.train.session import load_samples, set_up
from lrk.train.trainer import training_placement


def test_positions_reach_beyond_the_target(arguments):
    trainer = set_up(arguments(position_reach=3.0, contiguous_share=0.0, position_method="pose"))
    target = trainer.args.target_length
    batches = [trainer.data_collator([sample]) for sample in trainer.train_dataset]
    lasts = torch.tensor([int(batch["position_ids"].max()) for batch in batches])
    assert target < lasts.max() < 3 * target
    assert trainer.model.config.max_position_embeddings == target


def test_text_at_positions_is_read_as_far_as_they_reach(arguments, tokenizer):
    """Of 300 tokens, stretches of 128 are taken, where each token is where it pretends to be."""
    made = arguments(
        target_length=64,
        train_length=16,
        position_reach=2.0,
        selection="positions",
        position_method="randpos",
    )
    samples, _ = load_samples(made, tokenizer)
    sample = samples[0]
    placed = training_placement(made, tokenizer).placed(sample)
    assert len(sample["input_ids"]) == 128
    assert placed["position_ids"].max() >= 64
    assert torch.equal(placed["input_ids"], sample["input_ids"][placed["position_ids"]])


def test_a_temperature_holds_in_training_and_not_in_evaluation(arguments, corpus):
    def logged(**changes):
        made = arguments(
            learning_rate=0.0,
            max_steps=1,
            eval_data=[str(corpus)],
            eval_strategy="steps",
            eval_steps=1,
            **changes,
        )
        history = train(made).state.log_history
        loss = next(row["loss"] for row in history if "loss" in row)
        return loss, [
            row[key] for row in history for key in sorted(row) if "eval" in key and "loss" in key
        ]

    plain, plain_evaluated = logged()
    warm, warm_evaluated = logged(attention_temperature=0.01, overwrite_output_dir=True)
    assert warm != pytest.approx(plain, rel=1e-5)
    assert warm_evaluated == plain_evaluated
    assert plain_evaluated


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"position_reach": 0.5}, "position_reach is 0.5; it must be at least 1"),
        ({"attention_temperature": 0.0}, "attention_temperature is 0.0; it must be positive"),
        (
            {
                "attention_temperature": 1.2,
                "position_method": "contiguous",
            },
            "attention_temperature is 1.2 with position_method 'contiguous'; .* leave it at 1",
        ),
        (
            {"position_reach": 2.0, "position_method": "contiguous"},
            "position_reach is 2.0 with position_method 'contiguous'; .* leave it at 1",
        ),
    ],
)
def test_values_that_no_run_can_have(arguments, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        arguments(**changes)
