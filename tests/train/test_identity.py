"""A checkpoint is resumed by the run that wrote it, and by no other."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from lrk.train import LrkTrainingArguments, identity, train
from lrk.train.command import main
from lrk.train.identity import FREE, FREE_PREFIXES, check_settings, settings
from lrk.train.session import set_up

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def run(arguments, stopped, tmp_path) -> Path:
    """A run that was stopped after step 2; made once."""
    if not stopped.exists():
        train(arguments(**SAVING, output_dir=str(stopped)))
        shutil.rmtree(stopped / "checkpoint-4")
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 2e-3),
        ("lr_scheduler_type", "constant"),
        ("max_steps", 6),
        ("seed", 1),
        ("target_length", 128),
        ("train_length", 40),
        ("rope_theta", 5e4),
        ("rope_scaling", "yarn"),
        ("position_method", "pose"),
        ("contiguous_share", 0.5),
        ("pack", False),
        ("weight_decay", 0.1),
        ("optim", "sgd"),
        ("lora_rank", 2),
        ("gradient_accumulation_steps", 2),
    ],
)
def test_other_arguments_are_refused_and_leave_the_folder_as_it_is(
    options, run, capsys, key, value
):
    words = options | SAVING | {"data": options["data"][0], "resume_from_checkpoint": "true"}
    before = (run / "config.yaml").read_bytes()
    assert main([f"--{name}={item}" for name, item in (words | {key: value}).items()]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint-2' is of a run with" in line
    assert key in line
    assert f"which is {value!r} now" in line
    assert (run / "config.yaml").read_bytes() == before


def test_other_content_in_the_same_place_is_refused(arguments, run, corpus, model_folder, tmp_path):
    data = shutil.copytree(corpus, tmp_path / "data")
    changes = SAVING | {"resume_from_checkpoint": "true", "output_dir": str(run)}
    changes["data"] = [str(data / "*.txt")]
    set_up(arguments(**changes))
    (data / "1.txt").write_text((data / "1.txt").read_text().replace("winter", "spring", 1))
    with pytest.raises(ValueError, match="checkpoint-2' is of a run on other data than those of"):
        set_up(arguments(**changes))

    other = shutil.copytree(model_folder, tmp_path / "other")
    model = LlamaForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)
    model.save_pretrained(other)
    changes = SAVING | {"resume_from_checkpoint": "true", "model_name_or_path": str(other)}
    with pytest.raises(ValueError, match=r"is of a run on other weights than those of .*other'"):
        set_up(arguments(**changes))


def test_what_does_not_change_the_weights_may_change(arguments, run, corpus):
    trainer = train(
        arguments(
            **SAVING,
            resume_from_checkpoint="true",
            logging_steps=2,
            eval_data=[str(corpus / "held_out")],
            save_total_limit=1,
            dataloader_num_workers=1,
            gradient_checkpointing=True,
        )
    )
    assert trainer.state.global_step == 4
    assert yaml.safe_load((run / "config.yaml").read_text())["learning_rate"] == 1e-2


def test_what_identifies_a_run(arguments):
    made = arguments(per_device_train_batch_size=2, gradient_accumulation_steps=3)
    found = settings(made)
    again = settings(arguments(per_device_train_batch_size=3, gradient_accumulation_steps=2))
    assert found == again, "the samples of a step are what counts"
    assert {"seed", "learning_rate", "lora_rank", "token_loss", "max_steps"} < found.keys()
    assert not {"data", "output_dir", "save_steps", "report_to"} & found.keys()


@pytest.mark.parametrize(
    ("processes", "batch", "remedy"),
    [
        (4, 1, "4 (processes); gradient_accumulation_steps 2 makes 8 of them"),
        (2, 2, "2 (processes); gradient_accumulation_steps 2 makes 8 of them"),
        (3, 1, "3 (processes), and no gradient_accumulation_steps makes 8 of them"),
        (16, 1, "16 (processes), and no gradient_accumulation_steps makes 8 of them"),
    ],
)
def test_other_processes_make_the_samples_of_a_step_again(
    arguments, monkeypatch, processes, batch, remedy
):
    made = {"per_device_train_batch_size": batch}
    monkeypatch.setattr(identity, "run_of", lambda folder: written)
    written = settings(arguments(gradient_accumulation_steps=8))
    monkeypatch.setattr(LrkTrainingArguments, "world_size", processes)
    with pytest.raises(ValueError, match="is of a run with samples a step 8, which is ") as error:
        check_settings(Path("checkpoint-2"), arguments(**made))
    arithmetic = f"per_device_train_batch_size {batch} x gradient_accumulation_steps 1 x {remedy}"
    assert arithmetic in str(error.value)
    if processes * batch < 8 and 8 % (processes * batch) == 0:
        again = arguments(**made, gradient_accumulation_steps=8 // (processes * batch))
        check_settings(Path("checkpoint-2"), again)


def test_a_run_whose_learning_rate_does_not_follow_from_its_length_may_grow(arguments):
    for schedule, warmup, may_grow in (
        ("constant", 0.1, True),
        ("constant_with_warmup", 2, True),
        ("constant_with_warmup", 0.1, False),
        ("linear", 2, False),
    ):
        found = settings(arguments(lr_scheduler_type=schedule, warmup_steps=warmup))
        assert ("max_steps" not in found) == may_grow, (schedule, warmup)


def test_every_free_argument_exists(arguments):
    names = arguments().to_dict().keys()
    gone = {"activation_checkpointing", "enable_jit_checkpoint"}  # not of every release
    gone |= {"dataloader_multiprocessing_context"}
    gone |= {"auto_find_batch_size", "include_for_metrics", "batch_eval_metrics"}
    assert FREE - gone <= names
    prefixes = set(FREE_PREFIXES) - gone
    assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
