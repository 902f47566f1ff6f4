"""The two arguments of docs/proof.md: how far positions reach, and the temperature in training."""

import pytest
import torch

from lrk.train import train
from lrk.train.session import set_up


def test_positions_reach_beyond_the_target(arguments):
    trainer = set_up(arguments(position_reach=3.0, contiguous_share=0.0, position_method="pose"))
    target = trainer.args.target_length
    batches = [trainer.data_collator([sample]) for sample in trainer.train_dataset]
    lasts = torch.tensor([int(batch["position_ids"].max()) for batch in batches])
    assert target < lasts.max() < 3 * target
    assert trainer.model.config.max_position_embeddings == target


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
                "kernels": {"attention": False},
            },
            "stock attention has no temperature",
        ),
    ],
)
def test_values_that_no_run_can_have(arguments, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        arguments(**changes)
