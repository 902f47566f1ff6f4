"""A step whose gradient is not finite is not taken, and what led to it is kept."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from lrk.train import LrkTrainer, LrkTrainingArguments, train
from lrk.train.checkpoints import checkpoints, damage
from lrk.train.command import main
from lrk.train.finite import NotFiniteError, _are_finite, step_tensors
from lrk.train.session import run, set_up
from studies.ranks import fsdp_on_cpu, run_ranks

BAD_STEP = 3
OPTIONS = {
    "max_steps": 5,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture(params=["loss", "gradient"])
def spoiled(request, monkeypatch):
    """Step 3 has a NaN loss, or a finite loss and an infinite gradient."""
    step = LrkTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = step(self, model, inputs, *args, **kwargs)
        if self.state.global_step + 1 < BAD_STEP:
            return loss
        if request.param == "loss":
            return loss * float("nan")
        parameter = next(p for p in model.parameters() if p.requires_grad)
        return loss + Explosion.apply(parameter)

    monkeypatch.setattr(LrkTrainer, "compute_loss", compute_loss)
    return request.param


class Explosion(torch.autograd.Function):
    """0, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.full_like(x, float("inf"))


def test_the_step_is_not_taken_and_its_batch_is_kept(arguments, spoiled):
    trainer = set_up(arguments(**OPTIONS))
    with pytest.raises(NotFiniteError) as caught:
        run(trainer)
    folder = Path(trainer.args.output_dir) / f"not-finite-{BAD_STEP}"
    sentence = str(caught.value)
    assert f"step {BAD_STEP} has loss " in sentence
    assert "so it was not taken" in sentence
    assert str(folder) in sentence
    assert "\n" not in sentence
    assert ("loss nan" in sentence) == (spoiled == "loss")

    batch = load_file(folder / "batch-0.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (4, 32),
        "position_ids": (4, 32),
        "labels": (4, 32),
        "document": (4, 32),
        "sample_index": (4,),
    }
    for row, index in enumerate(batch["sample_index"].tolist()):
        assert torch.equal(batch["input_ids"][row], trainer.train_dataset[index]["input_ids"])
        assert str(index) in sentence

    kept = load_file(folder / "model.safetensors")
    good = load_file(Path(trainer.args.output_dir) / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(kept[name], good[name]) for name in good)
    assert damage(folder) is None


def test_batches_that_did_not_fit_are_none_of_the_step(arguments, monkeypatch):
    """The second of two does not, and `auto_find_batch_size` begins the step again."""
    step = LrkTrainer.compute_loss
    sizes: list[int] = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        sizes.append(len(self._batches))
        if len(sizes) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return step(self, model, inputs, *args, **kwargs) * float("nan")

    monkeypatch.setattr(LrkTrainer, "compute_loss", compute_loss)
    trainer = set_up(arguments(**OPTIONS, auto_find_batch_size=True))
    with pytest.raises(NotFiniteError, match="step 1 has loss nan"):
        run(trainer)
    assert sizes == [1, 2, 1, 2]
    batch = load_file(Path(trainer.args.output_dir) / "not-finite-1" / "batch-0.safetensors")
    assert batch["input_ids"].shape == (2, 32)


def test_resuming_passes_it_over_unless_it_is_asked_for(arguments, options, spoiled, monkeypatch):
    words = {**options, **OPTIONS, "data": options["data"][0]}
    assert main([f"--{name}={value}" for name, value in words.items()]) == 1
    monkeypatch.undo()
    folder = Path(options["output_dir"])
    made = arguments(**OPTIONS, resume_from_checkpoint="true")
    assert set_up(made).checkpoint == str(folder / "checkpoint-2")
    chosen = str(folder / f"not-finite-{BAD_STEP}")
    trainer = train(arguments(**OPTIONS, resume_from_checkpoint=chosen))
    assert trainer.state.global_step == 5


def test_the_norm_is_read_once_a_step(arguments, monkeypatch):
    """A number comes back, which transformers logs as it is in place of reading the norm."""
    norms = []
    stock = LrkTrainer._get_grad_norm

    def recorded(self, *args, **kwargs):
        norms.append(stock(self, *args, **kwargs))
        return norms[-1]

    monkeypatch.setattr(LrkTrainer, "_get_grad_norm", recorded)
    trainer = train(arguments(max_steps=2))
    logged = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert all(type(norm) is float for norm in norms)
    assert logged == norms


def test_documents_of_a_step_are_counted_over_its_batches():
    batch = {
        "input_ids": torch.zeros(2, 4, dtype=torch.int64),
        "position_ids": torch.zeros(2, 4, dtype=torch.int64),
        "labels": torch.zeros(2, 4, dtype=torch.int64),
        "cu_seq_lens_q": torch.tensor([0, 1, 4, 8], dtype=torch.int32),
        "sample_indices": [7, 3],
    }
    tensors = step_tensors([batch, batch])
    rows = [[0, 1, 1, 1], [2, 2, 2, 2], [3, 4, 4, 4], [5, 5, 5, 5]]
    assert tensors["document"].tolist() == rows
    assert tensors["sample_index"].tolist() == [7, 3, 7, 3]


class Spoil(TrainerCallback):
    """Makes one weight NaN in step `step`, after its gradient was found finite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            model.get_output_embeddings().weight.data[3, 5] = float("nan")


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_weights_that_are_not_finite_are_not_saved(arguments, save_strategy):
    """Of the last step no gradient would show it."""
    trainer = set_up(arguments(**OPTIONS | {"save_strategy": save_strategy, "max_steps": 4}))
    trainer.add_callback(Spoil(4))
    sentence = r"step 4 made weights that are not finite \(lm_head.weight and 0 more\), so they"
    with pytest.raises(NotFiniteError, match=sentence):
        run(trainer)
    folder = Path(trainer.args.output_dir)
    assert not (folder / "model.safetensors").exists()
    steps = [] if save_strategy == "no" else [2]
    assert list(checkpoints(folder)) == steps
    assert all(damage(path) is None for path in checkpoints(folder).values())
    assert not list(folder.glob(".partial-*"))


def test_the_step_that_made_them_is_named_and_not_the_next(arguments):
    trainer = set_up(arguments(**OPTIONS))
    trainer.add_callback(Spoil(1))
    with pytest.raises(NotFiniteError, match="step 1 made weights that are not finite"):
        run(trainer)
    assert not list(Path(trainer.args.output_dir).glob("not-finite-*"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_weight_among_the_largest_is_found(bad, dtype):
    model = torch.nn.Linear(300, 7, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(torch.finfo(dtype).max)
    assert _are_finite(model.parameters())
    with torch.no_grad():
        model.weight[6, 299] = bad
    assert not _are_finite(model.parameters())


def spoiled_in_a_rank(options: dict[str, Any], cache: Path) -> list[str]:
    """A loss that is NaN in the second process, then a weight of which it alone has the part."""
    datasets.config.HF_DATASETS_CACHE = cache
    step = LrkTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = step(self, *args, **kwargs)
        is_bad = self.state.global_step + 1 == BAD_STEP and self.args.process_index == 1
        return loss * float("nan") if is_bad else loss

    LrkTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    with fsdp_on_cpu():
        trainer = set_up(LrkTrainingArguments(**options))
        with pytest.raises(NotFiniteError) as of_step:
            run(trainer)
        with torch.no_grad():
            if trainer.args.process_index == 1:
                trainer.model.model.norm.weight.to_local()[-1] = float("inf")
        with pytest.raises(NotFiniteError) as of_weights:
            trainer.check_weights()
    return [str(of_step.value), str(of_weights.value)]


def test_shards_of_several_processes(options, tmp_path):
    sharded = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}
    given = {**options, **OPTIONS, "fsdp": True, "fsdp_config": sharded}
    found = run_ranks(spoiled_in_a_rank, 2, given, tmp_path)
    folder = Path(options["output_dir"]) / f"not-finite-{BAD_STEP}"
    assert damage(folder) is None
    assert (folder / "pytorch_model_fsdp_0" / "__1_0.distcp").is_file()
    batches = [load_file(folder / f"batch-{rank}.safetensors") for rank in range(2)]
    for (of_step, of_weights), batch in zip(found, batches, strict=True):
        assert f"step {BAD_STEP} has loss " in of_step
        assert "gradient norm nan" in of_step
        samples = batch["sample_index"].tolist()
        assert f"(samples {', '.join(map(str, samples))})" in of_step
        assert "weights that are not finite" in of_weights
    assert not set(batches[0]["sample_index"].tolist()) & set(batches[1]["sample_index"].tolist())
    assert "(model.norm.weight and 0 more)" in found[1][1]
