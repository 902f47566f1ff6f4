"""The trainer's own evaluation: losses of long samples, without the logits of them."""

import pytest
from torch import nn

from lrk.train.session import set_up


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_evaluation_forms_no_logits(arguments, corpus, lora_rank, monkeypatch):
    trainer = set_up(arguments(lora_rank=lora_rank, eval_data=[str(corpus / "held_out")]))
    vocabulary, formed = trainer.model.config.vocab_size, []
    forward = nn.Linear.forward

    def noting(self, x):
        if self.out_features == vocabulary:
            formed.append(x.shape)
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", noting)
    found = trainer.evaluate()
    assert any(name.endswith("_loss") for name in found)
    assert not trainer.model.training
    assert not formed
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    _, logits, _ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    assert formed
    assert logits is not None


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_evaluation_of_a_compiled_model(arguments, corpus, lora_rank):
    """Which accelerate wraps once more."""
    held_out = {"lora_rank": lora_rank, "eval_data": [str(corpus / "held_out")]}
    expected = set_up(arguments(**held_out)).evaluate()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    found = set_up(arguments(**held_out, **compiled, overwrite_output_dir=True)).evaluate()
    losses = {name: loss for name, loss in expected.items() if name.endswith("_loss")}
    assert losses
    assert {name: found[name] for name in losses} == pytest.approx(losses, rel=1e-4)
