"""The model before the first step is evaluated as it came, and the run is the same without that."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrk.hf import patch
from lrk.train import LrkTrainer, train
from lrk.train.evaluations import losses_by_step
from lrk.train.pretrained import load_tokenizer
from lrk.train.session import evaluation_samples


def of_the_original(made, model_folder):
    """What an evaluation of the model in the folder says, whose RoPE nobody has stretched."""
    model = patch(AutoModelForCausalLM.from_pretrained(model_folder), **made.kernels)
    tokenizer = load_tokenizer(made, model.config)
    samples = evaluation_samples(made, tokenizer)
    trainer = LrkTrainer(model, tokenizer, samples, made, samples)
    trainer.evaluate()
    return losses_by_step(trainer.state.log_history)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_rank": 2},
        {"kernels": {"rope": False, "attention": False}, "position_method": "contiguous"},
    ],
    ids=["lrk", "LoRA", "stock RoPE"],
)
def test_step_0_is_the_original_model(arguments, corpus, model_folder, tmp_path, changes):
    changes = {"eval_data": [str(corpus / "held_out")], "eval_samples": 3, **changes}
    if "kernels" in changes:
        changes |= {"eval_lengths": [32]}
    expected = of_the_original(arguments(**changes, output_dir=str(tmp_path / "r")), model_folder)
    trainer = train(arguments(**changes))
    found = losses_by_step(trainer.state.log_history)
    assert list(found) == [0, 2]
    assert found[0] == pytest.approx(expected, abs=1e-6)
    # The RoPE that was put back for it is not that of the model that is saved.
    assert trainer.model.config.max_position_embeddings == 256
    without = train(arguments(**changes, eval_on_start=False, output_dir=str(tmp_path / "other")))
    assert list(losses_by_step(without.state.log_history)) == [2]
    for name, tensor in without.model.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name


def test_a_run_that_goes_on_does_not_evaluate_it_again(arguments, corpus, tmp_path):
    chosen = {
        "eval_data": [str(corpus / "held_out")],
        "eval_samples": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "constant",
    }
    train(arguments(**chosen, max_steps=1))
    again = train(arguments(**chosen, max_steps=2, resume_from_checkpoint="true"))
    assert list(losses_by_step(again.state.log_history)) == [0, 2]


def test_nothing_to_evaluate_on_is_refused(arguments):
    assert arguments().eval_on_start is False
    with pytest.raises(ValueError, match="eval_on_start is true, but eval_data is empty"):
        arguments(eval_on_start=True)
