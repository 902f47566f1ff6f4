"""A run with the memory techniques ends where a plain one does, also after a stop."""

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from lrk.memory.host_optimizer import HostOptimizer
from lrk.memory.offload import HostCopies
from lrk.train import LrkTrainingArguments, train
from lrk.train.finite import NotFiniteError
from lrk.train.session import run, set_up
from lrk.train.telemetry import read_metrics
from studies.ranks import fsdp_on_cpu, run_ranks

LEAN = {
    "gradient_checkpointing": True,
    "keep_attention": True,
    "layers_per_checkpoint": 2,
    "tile_tokens": 10,
    "offload_activations": True,
    "offload_optimizer": True,
    "optimizer_in_backward": True,
}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_the_run_is_that_of_a_plain_trainer_and_resumes_bit_for_bit(arguments, tmp_path):
    usual = {"max_steps": 4, "max_grad_norm": 0.0, "save_strategy": "steps", "save_steps": 2}
    usual["lr_scheduler_type"] = "constant"
    folders = {name: str(tmp_path / name) for name in ("plain", "lean", "stopped")}
    train(arguments(**usual, output_dir=folders["plain"]))
    trainer = train(arguments(**usual, **LEAN, output_dir=folders["lean"]))
    assert isinstance(trainer.optimizer.optimizer, HostOptimizer)
    expected, found = weights(folders["plain"]), weights(folders["lean"])
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    norms = [
        [row["grad_norm"] for row in read_metrics(Path(folders[name]) / "metrics.jsonl")
         if "grad_norm" in row]
        for name in ("plain", "lean")
    ]  # fmt: skip
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)

    train(arguments(**usual | {"max_steps": 2}, **LEAN, output_dir=folders["stopped"]))
    resumed = usual | {"output_dir": folders["stopped"], "resume_from_checkpoint": "true"}
    train(arguments(**resumed, **LEAN))
    again = weights(folders["stopped"])
    assert all(torch.equal(again[name], weight) for name, weight in found.items())


# Those that FSDP2 does not have itself, in two runs: the second keeps what the first makes again.
OVER_SHARDS = {
    "tiles": {"gradient_checkpointing": True, "layers_per_checkpoint": 2, "tile_tokens": 10},
    "kept": {"gradient_checkpointing": True, "keep_attention": True, "offload_activations": True},
}


def losses_over_shards(runs: dict[str, dict[str, Any]], cache: Path) -> dict[str, list[float]]:
    datasets.config.HF_DATASETS_CACHE = cache
    found = {}
    for name, options in runs.items():
        with fsdp_on_cpu():
            trainer = train(LrkTrainingArguments(**options, fsdp=True))
        assert all(
            isinstance(weight, DTensor) for weight in trainer.optimizer.param_groups[0]["params"]
        )
        found[name] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return found


def test_weights_that_fsdp2_shards_are_trained_alike(options, arguments, tmp_path):
    usual = options | {"max_steps": 3}
    alone = train(arguments(**usual, gradient_accumulation_steps=2))
    expected = [row["loss"] for row in alone.state.log_history if "loss" in row]
    runs = {
        name: {**usual, **techniques, "output_dir": str(tmp_path / name)}
        for name, techniques in (OVER_SHARDS | {"bf16": {"bf16": True}}).items()
    }
    for found in run_ranks(losses_over_shards, 2, runs, datasets.config.HF_DATASETS_CACHE):
        rounded = torch.tensor(found.pop("bf16"))
        assert rounded.tolist() == pytest.approx(expected, rel=1e-3)
        assert (rounded != rounded.bfloat16()).all(), "what is reported keeps its digits"
        assert found == {name: pytest.approx(expected, rel=1e-6) for name in OVER_SHARDS}
    for name in OVER_SHARDS:
        for key, weight in weights(tmp_path / name).items():
            torch.testing.assert_close(
                weight, weights(options["output_dir"])[key], rtol=0, atol=1e-5, msg=f"{name} {key}"
            )


def test_layers_save_on_the_host(arguments, monkeypatch):
    packed = []
    pack = HostCopies._pack

    def counted(self, tensor):
        if tensor.numel():  # before PyTorch 2.13 a checkpoint saves an empty tensor too
            packed.append(tensor.shape)
        return pack(self, tensor)

    monkeypatch.setattr(HostCopies, "_pack", counted)
    train(arguments(max_steps=1, gradient_checkpointing=True, offload_activations=True))
    assert packed == 2 * [(1, 32, 32)]


def test_a_gradient_that_is_not_finite_stops_the_run(arguments, monkeypatch):
    trainer = set_up(arguments(max_steps=3, max_grad_norm=0.0, optimizer_in_backward=True))
    step = type(trainer).compute_loss

    def compute_loss(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        return loss * math.inf if self.state.global_step == 1 else loss

    monkeypatch.setattr(type(trainer), "compute_loss", compute_loss)
    with pytest.raises(NotFiniteError, match=r"step 2 has gradient norm nan, .*resume from"):
        run(trainer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_tokens": -1}, "tile_tokens is -1; it must be 0 or positive"),
        ({"keep_attention": True}, "keep_attention is true; it needs activation_checkpointing"),
        ({"layers_per_checkpoint": 0}, "layers_per_checkpoint is 0; it must be at least 1"),
        ({"layers_per_checkpoint": 2}, "layers_per_checkpoint is 2; it needs activation_check"),
        ({"offload_activations": True}, "offload_activations is true; it needs"),
        (
            {
                "offload_activations": True,
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            "offload_activations is true with activation_checkpointing_kwargs",
        ),
        (
            {
                "keep_attention": True,
                "gradient_checkpointing": True,
                "kernels": {"attention": False},
                "position_method": "contiguous",
                "eval_lengths": [32],
            },
            "keep_attention is true; it needs kernels.attention",
        ),
        (
            {
                "keep_attention": True,
                "gradient_checkpointing": True,
                "kernels": {"attention": "flash_attention_3"},
            },
            "keep_attention is true with kernels.attention 'flash_attention_3'; it keeps what lrk",
        ),
        ({"optimizer_in_backward": True}, "max_grad_norm is 1.0 with optimizer_in_backward"),
        (
            {"optimizer_in_backward": True, "gradient_accumulation_steps": 2},
            "gradient_accumulation_steps is 2 with optimizer_in_backward; it must be 1",
        ),
        (
            {"offload_optimizer": True, "optim": "adamw_torch_8bit"},
            "optim is adamw_torch_8bit with offload_optimizer; it must be one of",
        ),
    ],
)
def test_bad_combinations_are_one_sentence(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)
