"""Whole checkpoints: how they appear, which are damaged, and what a killed run goes on from."""

import errno
import json
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.distributed as dist
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.fsdp import fully_shard

from lrk.atomic import SaveError
from lrk.train import LrkTrainer, LrkTrainingArguments, fsdp_checkpoint, manifest, train
from lrk.train.checkpoints import check_engine, checkpoints, damage, rotate
from lrk.train.command import main
from lrk.train.engine import Engine
from lrk.train.manifest import write_manifest
from lrk.train.session import set_up
from lrk.train.telemetry import read_metrics
from studies.kill_and_resume import Study
from studies.ranks import RankError, fsdp_on_cpu, lrk_train, run_ranks


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    save_file({"x": torch.ones(100)}, folder / "model.safetensors")
    torch.save({"x": torch.ones(100)}, folder / "optimizer.pt")
    torch.save({}, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    write_manifest(folder, {})
    return folder


def test_a_whole_checkpoint_has_no_damage(checkpoint):
    assert damage(checkpoint) is None


@pytest.mark.parametrize(
    "file", ["trainer_state.json", "model.safetensors", "optimizer.pt", "training_args.bin"]
)
def test_damage_is_named(checkpoint, file):
    path = checkpoint / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    size = f"{len(whole):,}"
    assert damage(checkpoint) == f"its {file} has {len(whole) - 1:,} bytes in place of {size}"
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    assert damage(checkpoint) == f"its {file} is damaged: its hash is not that of manifest.json"
    path.unlink()
    assert damage(checkpoint) == f"it has no {file}"


@pytest.mark.parametrize("content", ["", "[]", '{"run": {}, "files": {"x": 1}}'])
def test_a_damaged_manifest(checkpoint, content):
    (checkpoint / "manifest.json").write_text(content)
    assert damage(checkpoint) == "its manifest.json is damaged"
    (checkpoint / "manifest.json").unlink()
    assert damage(checkpoint) == "it has no manifest.json"


def test_a_file_is_read_again_only_when_it_has_changed(checkpoint, monkeypatch):
    assert damage(checkpoint) is None
    monkeypatch.setattr(manifest, "sha256_of", lambda path: pytest.fail(str(path)))
    assert damage(checkpoint) is None


def test_weights_alone_are_no_checkpoint_to_resume_from(arguments):
    train(arguments(**SAVING, save_only_model=True))
    folder = Path(arguments().output_dir) / "checkpoint-3"
    assert damage(folder).startswith("it holds the model alone (save_only_model)")


def test_rotation_deletes_the_smallest_steps_and_keeps_what_it_is_told(tmp_path):
    for step in (2, 10, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert list(checkpoints(tmp_path)) == [2, 4, 6, 10]
    rotate(tmp_path, 2, keep={tmp_path / "checkpoint-4"})
    assert list(checkpoints(tmp_path)) == [4, 10]
    rotate(tmp_path, None, keep=set())
    assert list(checkpoints(tmp_path)) == [4, 10]


def test_a_run_that_is_killed_while_it_saves_ends_with_the_same_weights(tmp_path):
    """One of the kills of `python -m studies.kill_and_resume`."""
    trial = Study(tmp_path, seed=0).trial(0, "saving")
    assert trial.faults == []


SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def test_the_best_checkpoint_is_known_by_its_final_name(arguments, corpus):
    made = arguments(
        **SAVING,
        eval_data=[str(corpus / "held_out")],
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_256_loss",
    )
    trainer = train(made)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.is_dir()
    assert best.parent == Path(made.output_dir)
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)


def test_a_full_disk_stops_the_run_with_a_sentence_and_keeps_what_was_saved(
    arguments, options, monkeypatch, capsys
):
    save = torch.save

    def full(obj, path, *args, **kwargs):
        if "checkpoint-3" in str(path) and "scheduler" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(obj, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    words = {**options, **SAVING, "data": options["data"][0]}
    assert main([f"--{name}={value}" for name, value in words.items()]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("lrk-train: ")
    assert "checkpoint-3' could not be saved" in line
    assert "No space left on device" in line
    folder = Path(options["output_dir"])
    assert list(checkpoints(folder)) == [1, 2]
    assert [damage(path) for path in checkpoints(folder).values()] == [None, None]
    assert not list(folder.glob(".partial-*"))

    monkeypatch.setattr(torch, "save", save)
    train(arguments(**SAVING, resume_from_checkpoint="true"))
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row] == [
        1,
        2,
        3,
    ]


def test_metrics_on_a_full_disk(arguments, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer = train(arguments(max_steps=1))
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(SaveError, match=r"metrics.jsonl' could not be written \(No space left"):
        trainer.log({"loss": 1.0})


def test_a_finished_run_is_resumed_without_a_step(arguments, tmp_path):
    """transformers would take step 4 where epochs have more than 3 steps."""
    trainer = train(arguments(**SAVING))
    folder = Path(trainer.args.output_dir)
    before = load_file(folder / "model.safetensors")
    shutil.rmtree(folder / "checkpoint-1")
    again = train(arguments(**SAVING, resume_from_checkpoint="auto"))
    assert again.state.global_step == 3
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert not any("train_loss" in row for row in rows)


def test_evaluation_draws_no_random_numbers_of_the_run(arguments, corpus):
    made = arguments(max_steps=1, eval_data=[str(corpus / "held_out")])
    trainer = train(made)
    before = torch.random.get_rng_state()
    trainer.evaluate()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_token_of_the_hub_is_in_no_file(arguments):
    trainer = train(arguments(**SAVING | {"max_steps": 1}, hub_token="hf_secret"))
    assert trainer.args.hub_token == "hf_secret"
    files = [path for path in Path(trainer.args.output_dir).rglob("*") if path.is_file()]
    assert len([path for path in files if path.name == "training_args.bin"]) == 2
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]


LOADS_ON_CPUS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"),
    reason="this transformers loads no optimizer in several processes on a CPU",
)
PARTS = ("optimizer", "pytorch_model_fsdp")
SHARDED = {"fsdp": True, "fsdp_config": "{version: 2, state_dict_type: SHARDED_STATE_DICT}"}
FULL = {"fsdp": True, "fsdp_config": "{version: 2}"}
EVERY_SECOND = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def words(options: dict[str, Any], **changes: Any) -> list[str]:
    """A command line."""
    given = {**options, "data": options["data"][0], **changes}
    return [f"--{name}={value}" for name, value in given.items()]


def in_ranks(size: int, cache: Path, command: list[str]) -> list[str]:
    """What `size` ranks print, which end well."""
    variables = {"HF_DATASETS_CACHE": str(cache)}
    found = run_ranks(lrk_train, size, command, environment=variables)
    assert [status for status, _ in found] == [0] * size, found[0][1]
    return [printed for _, printed in found]


@pytest.mark.parametrize("engine", [FULL, SHARDED], ids=["full", "sharded"])
def test_saved_on_four_and_resumed_on_two(options, tmp_path, engine):
    """With the same samples a step; whatever a run writes itself, it reads both formats."""
    options |= {**EVERY_SECOND, "lora_rank": 4, "lora_modules_to_save": "norm"}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    four = {"output_dir": str(straight), "per_device_train_batch_size": 1}
    in_ranks(4, tmp_path, words(options, **engine, **four))
    written = json.loads((straight / "checkpoint-2" / "manifest.json").read_text())
    assert {"rng_state_3.pth", "trainer_state.json", "scheduler.pt"} <= written["files"].keys()
    shards = {f"{part}_0/__{rank}_0.distcp" for part in PARTS for rank in range(4)}
    assert (shards <= written["files"].keys()) == (engine is SHARDED)

    shutil.copytree(straight / "checkpoint-2", resumed / "checkpoint-2")
    two = {"output_dir": str(resumed), "per_device_train_batch_size": 2}
    printed = in_ranks(2, tmp_path, words(options, **SHARDED, **two, resume_from_checkpoint="auto"))
    assert "is of 4 processes and goes on with 2" in printed[0]
    one, other = (load_file(folder / "model.safetensors") for folder in (straight, resumed))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5)


def best_of_shards(options: dict[str, Any], cache: Path) -> tuple[str, int]:
    """The checkpoint that a rank has loaded as the best one, and the step of the best."""
    datasets.config.HF_DATASETS_CACHE = cache
    with fsdp_on_cpu():
        trainer = train(LrkTrainingArguments(**options))
    return Path(trainer.state.best_model_checkpoint).name, trainer.state.best_global_step


def test_all_ranks_load_the_best_of_sharded_checkpoints(options, corpus, tmp_path):
    """Not each its own part of another one."""
    options |= {
        **EVERY_SECOND,
        "fsdp": True,
        "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"},
        "eval_data": [str(corpus / "held_out")],
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
    }
    ranks = run_ranks(best_of_shards, 2, options, tmp_path)
    assert ranks == [("checkpoint-4", 4)] * 2
    run = Path(options["output_dir"])
    dcp_to_torch_save(run / "checkpoint-4" / "pytorch_model_fsdp_0", tmp_path / "best.pt")
    best = torch.load(tmp_path / "best.pt")["model"]
    for name, weight in load_file(run / "model.safetensors").items():
        assert torch.equal(weight, best[name]), name


def interrupted(command: list[str], number: int, ranks: list[int]) -> tuple[int, str]:
    """`lrk_train`, of which some ranks get a signal in the step after a checkpoint."""
    step = LrkTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2 and self.args.process_index in ranks:
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    LrkTrainer.training_step = training_step  # type: ignore[method-assign]
    return lrk_train(command)


@pytest.mark.parametrize(
    "engine", [pytest.param({}, id="DDP", marks=LOADS_ON_CPUS), pytest.param(SHARDED, id="FSDP2")]
)
def test_ranks_that_are_killed_go_on_by_the_same_command(options, tmp_path, engine):
    """Killed in step 3, told by a scheduler to stop in step 3, and left alone: bit for bit."""
    options |= {**EVERY_SECOND, "lora_rank": 4, "lora_dropout": 0.1}
    command = words(options, **engine, resume_from_checkpoint="auto")
    variables = {"HF_DATASETS_CACHE": str(tmp_path)}
    folder = Path(options["output_dir"])
    with pytest.raises(RankError, match=r"ended with -9"):
        run_ranks(interrupted, 2, command, signal.SIGKILL, [0, 1], environment=variables)
    assert list(checkpoints(folder)) == [2]
    stopped = run_ranks(interrupted, 2, command, signal.SIGTERM, [1], environment=variables)
    assert [status for status, _ in stopped] == [128 + signal.SIGTERM] * 2
    assert list(checkpoints(folder)) == [2, 3]
    in_ranks(2, tmp_path, command)

    straight = tmp_path / "straight"
    in_ranks(2, tmp_path, words(options, **engine, output_dir=straight))
    one, other = (load_file(each / "model.safetensors") for each in (folder, straight))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]


def on_a_full_disk(command: list[str]) -> tuple[int, str]:
    """The main process cannot write the weights of a checkpoint, and has yet to give its part of
    the optimizer."""
    save = torch.save

    def full(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-2" in str(path) and str(path).endswith("pytorch_model_fsdp.bin"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, path, *args, **kwargs)

    torch.save = full
    return lrk_train(command)


def test_a_full_disk_of_one_process_ends_all(options, tmp_path):
    command = words(options, **FULL, **EVERY_SECOND)
    variables = {"HF_DATASETS_CACHE": str(tmp_path)}
    (main, first), (other, second) = run_ranks(
        on_a_full_disk, 2, command, environment=variables, timeout=60
    )
    assert main == other == 1
    assert "checkpoint-2' could not be saved ([Errno 28] No space left on device)" in first
    assert "lrk-train: process 0 on " in second
    assert "No space left on device" in second
    assert not list(Path(options["output_dir"]).glob("*checkpoint*"))


@pytest.mark.parametrize(
    ("written", "now", "sentence"),
    [
        (("FSDP2", 4), ("DDP", 4), "written by FSDP2, whose format DDP cannot read: go on with"),
        (("ZeRO-3", 4), ("ZeRO-2", 4), "written by ZeRO-3, whose format ZeRO-2 cannot read"),
        (("ZeRO-3", 4), ("ZeRO-3", 2), "by ZeRO-3 with 4 processes, and there are 2 now"),
        (("FSDP2", 4), ("FSDP2", 2), None),
        (("one process", 1), ("DDP", 2), None),
        ((), ("DDP", 2), None),
    ],
)
def test_what_another_engine_wrote(checkpoint, arguments, monkeypatch, written, now, sentence):
    write_manifest(checkpoint, dict(zip(("engine", "processes"), written, strict=False)))
    monkeypatch.setattr("lrk.train.checkpoints.engine_of", lambda arguments: Engine(*now))
    refused = pytest.raises(ValueError, match=sentence) if sentence else nullcontext()
    with refused:
        check_engine(checkpoint, arguments())


def evaluated(options: dict[str, Any], cache: Path) -> float:
    """The loss of a model that is not trained, and then trains."""
    datasets.config.HF_DATASETS_CACHE = cache
    with fsdp_on_cpu():
        trainer = set_up(LrkTrainingArguments(**options))
        loss = trainer.evaluate()["eval_256_loss"]
        trainer.train()
    return loss


def test_fsdp_evaluates_before_it_trains(options, corpus, tmp_path):
    """As the evaluation of a merged model does, which never trains."""
    given = {**options, "eval_data": [str(corpus / "held_out")], "eval_lengths": [256]}
    sharded = {"fsdp": True, "fsdp_config": {"version": 2}}
    alone = evaluated({**given, "output_dir": str(tmp_path / "alone")}, tmp_path)
    for loss in run_ranks(evaluated, 2, given | sharded, tmp_path):
        assert loss == pytest.approx(alone, rel=1e-6)


def names_that_are_missing(folder: Path) -> None:
    dist.init_process_group("gloo")
    model = fully_shard(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    fsdp_checkpoint.save_model(model, folder, full=True)
    file = folder / f"{fsdp_checkpoint.MODEL}.bin"
    dist.barrier()
    if dist.get_rank() == 0:
        state = torch.load(file, weights_only=True)
        torch.save({name: value for name, value in state.items() if name != "1.bias"}, file)
    dist.barrier()
    with pytest.raises(ValueError, match=r"model_fsdp.bin' has no 1\.bias of this model"):
        fsdp_checkpoint.load_model(model, folder)


def test_a_state_dict_of_other_names_is_refused_by_all(tmp_path):
    run_ranks(names_that_are_missing, 2, tmp_path)
