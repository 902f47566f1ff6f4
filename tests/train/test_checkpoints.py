"""Whole checkpoints: how they appear, which are damaged, and what a killed run goes on from."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrk.atomic import SaveError
from lrk.train import manifest, train
from lrk.train.checkpoints import checkpoints, damage, rotate
from lrk.train.command import main
from lrk.train.manifest import write_manifest
from lrk.train.telemetry import read_metrics
from studies.kill_and_resume import Study


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
    trial = Study(tmp_path, seed=0, start_method="fork").trial(0, "saving")
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
