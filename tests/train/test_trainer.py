"""The trainer's own evaluation, without logits; numbers that are the same on several processes."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn
from transformers.utils.import_utils import is_accelerate_available

from lrk.train import LrkTrainingArguments
from lrk.train.session import set_up
from studies.ranks import fsdp_on_cpu, run_ranks


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


class LabelsThatDiffer(torch.utils.data.Dataset):
    """Samples of which the later ones have fewer labels."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        kept = torch.arange(len(sample["input_ids"])) >= 9 * index
        return {**sample, "is_label": kept}


def evaluated(options: dict[str, Any], cache: Path) -> float:
    datasets.config.HF_DATASETS_CACHE = cache
    with fsdp_on_cpu():
        trainer = set_up(LrkTrainingArguments(**options))
        (samples,) = trainer.eval_dataset.values()
        return trainer.evaluate(LabelsThatDiffer(samples))["eval_loss"]


@pytest.mark.parametrize(
    "spread",
    [
        pytest.param({}, id="DDP"),
        pytest.param(
            {"sequence_parallel": 2},
            marks=pytest.mark.skipif(
                not is_accelerate_available("1.12.0"), reason="sequence_parallel needs it"
            ),
        ),
    ],
)
def test_the_loss_of_an_evaluation_is_the_mean_of_its_samples(options, corpus, spread):
    options |= {"eval_data": [str(corpus / "held_out")], "eval_samples": 3, "eval_lengths": [256]}
    cache = datasets.config.HF_DATASETS_CACHE
    expected = evaluated(options, cache)
    spread = {**spread, "output_dir": options["output_dir"] + "-spread"}
    for found in run_ranks(evaluated, 2, {**options, **spread}, cache):
        assert found == pytest.approx(expected, rel=1e-6)


def labels_and_losses(options: dict[str, Any], cache: Path) -> tuple[float, list[float]]:
    datasets.config.HF_DATASETS_CACHE = cache
    counted = []
    with fsdp_on_cpu():
        trainer = set_up(LrkTrainingArguments(**options))
        forward = type(trainer.model).forward

        def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
            counted.append(float(kwargs["num_items_in_batch"]))
            return forward(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(type(trainer.model), "forward", counting)
            trainer.train()
    rows = trainer.state.log_history
    return counted[0], [row["loss"] for row in rows if "loss" in row]


def test_fsdp_rounds_no_number_of_labels(options):
    """bf16 knows 558 as 560, and the loss is divided by it."""
    options |= {"bf16": True, "per_device_train_batch_size": 3, "pack": False}
    cache = datasets.config.HF_DATASETS_CACHE
    labels, losses = labels_and_losses({**options, "gradient_accumulation_steps": 6}, cache)
    assert torch.tensor(labels).bfloat16().item() != labels
    sharded = {**options, "gradient_accumulation_steps": 3, "fsdp": True}
    sharded["output_dir"] += "-sharded"
    for found, others in run_ranks(labels_and_losses, 2, sharded, cache):
        assert found == labels
        assert others == pytest.approx(losses, rel=5e-4)
