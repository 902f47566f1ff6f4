import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lrk.train import LrkTrainingArguments, run_folder
from lrk.train.manifest import write_manifest
from studies.ranks import run_ranks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two whole checkpoints and one whose writing was cut short."""
    folder = tmp_path / "run"
    for step in (2, 10, 11):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        save_file({"x": torch.ones(2)}, folder / f"checkpoint-{step}" / "model.safetensors")
        if step != 11:
            state = folder / f"checkpoint-{step}" / "trainer_state.json"
            state.write_text(f'{{"global_step": {step}}}')
            write_manifest(state.parent, {})
    (folder / "metrics.jsonl").write_text("")
    (folder / "config.yaml").write_text("")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_an_empty_or_absent_folder_is_a_new_run(arguments, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run_folder.check(arguments(output_dir=str(tmp_path / "empty"))) is None
    assert run_folder.check(arguments(output_dir=str(tmp_path / "absent"))) is None


def test_another_run_is_not_overwritten(arguments, folder):
    with pytest.raises(ValueError, match=r"holds another run \(checkpoint-10\): choose"):
        run_folder.check(arguments(output_dir=str(folder)))


def test_resuming_takes_the_newest_whole_checkpoint(arguments, folder):
    made = arguments(output_dir=str(folder), resume_from_checkpoint="true")
    assert run_folder.check(made) == str(folder / "checkpoint-10")
    made = arguments(output_dir=str(folder), resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert run_folder.check(made) == str(folder / "checkpoint-2")


def test_overwriting_deletes_the_run_and_nothing_else(arguments, folder):
    made = arguments(output_dir=str(folder), overwrite_output_dir=True)
    assert run_folder.check(made) is None
    run_folder.clear(made)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_without_the_flag_nothing_is_deleted(arguments, folder):
    run_folder.clear(arguments(output_dir=str(folder)))
    assert (folder / "metrics.jsonl").exists()


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(arguments, folder):
    for step in (2, 10, 11):
        shutil.rmtree(folder / f"checkpoint-{step}")
    made = arguments(output_dir=str(folder), resume_from_checkpoint="true")
    assert run_folder.check(made) is None


def test_a_run_without_a_whole_checkpoint_is_not_begun_again_in_silence(arguments, folder):
    for step in (2, 10):
        (folder / f"checkpoint-{step}" / "model.safetensors").unlink()
    made = arguments(output_dir=str(folder), resume_from_checkpoint="auto")
    with pytest.raises(ValueError, match=r"no whole .* \(checkpoint-11: it has no manifest.json\)"):
        run_folder.check(made)


def test_a_damaged_checkpoint_is_passed_over(arguments, folder):
    (folder / "checkpoint-10" / "model.safetensors").write_bytes(b"x" * 72)
    made = arguments(output_dir=str(folder), resume_from_checkpoint="true")
    assert run_folder.check(made) == str(folder / "checkpoint-2")


def test_a_run_that_died_before_its_first_step_does_not_block_its_folder(arguments, tmp_path):
    for name in ("config.yaml", "environment.json", "metrics.jsonl"):
        (tmp_path / name).write_text("")
    assert run_folder.check(arguments(output_dir=str(tmp_path))) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(ValueError, match="holds another run"):
        run_folder.check(arguments(output_dir=str(tmp_path)))


@pytest.mark.parametrize("choice", ["true", "auto"])
def test_a_finished_run_without_checkpoints_is_not_trained_again(arguments, tmp_path, choice):
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / name).write_text("")
    made = arguments(output_dir=str(tmp_path), resume_from_checkpoint=choice)
    with pytest.raises(ValueError, match="holds a finished run"):
        run_folder.check(made)


def test_auto_resumes_what_is_there_and_begins_where_nothing_is(arguments, folder, tmp_path):
    made = arguments(output_dir=str(folder), resume_from_checkpoint="auto")
    assert run_folder.check(made) == str(folder / "checkpoint-10")
    made = arguments(output_dir=str(tmp_path / "new"), resume_from_checkpoint="auto")
    assert run_folder.check(made) is None


def test_a_checkpoint_of_one_run_does_not_go_into_the_folder_of_another(
    arguments, folder, tmp_path
):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_text("")
    made = arguments(output_dir=str(other), resume_from_checkpoint=str(folder / "checkpoint-2"))
    with pytest.raises(ValueError, match="holds another run"):
        run_folder.check(made)


def test_a_file_is_no_folder(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run_folder.check(arguments(output_dir=str(tmp_path / "file")))


def looked_for(options: dict[str, Any], folders: list[str]) -> str:
    """What a rank says of an output folder of its own, or of one that it shares."""
    rank = int(os.environ["RANK"])
    arguments = LrkTrainingArguments(**{**options, "output_dir": folders[rank]})
    run_folder._PATIENCE_S = 0.1
    try:
        return str(run_folder.check_together(arguments))
    except ValueError as error:
        return str(error)


def test_a_folder_that_is_not_shared_by_all_processes(options, tmp_path):
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    found = run_ranks(looked_for, 2, options, [one, other], timeout=60)
    for folder, sentence in zip((one, other), found, strict=True):
        assert sentence.startswith(f"output_dir {folder!r} is not one folder for all processes")
        assert "not seen by process 1 on " in sentence
        assert "process 0 on" not in sentence
    assert not list((tmp_path / "one").iterdir())


def test_a_folder_that_is_shared_by_all_processes(options, tmp_path):
    shared = str(tmp_path / "shared")
    assert run_ranks(looked_for, 2, options, [shared, shared], timeout=60) == ["None", "None"]


def test_all_processes_hear_of_another_run(options, tmp_path):
    """The main process looks for all."""
    (tmp_path / "model.safetensors").touch()
    folder = str(tmp_path)
    for sentence in run_ranks(looked_for, 2, options, [folder, folder], timeout=60):
        assert "holds another run (model.safetensors)" in sentence
