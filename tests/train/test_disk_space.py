"""What a run writes is compared with the free bytes of its folder before it begins."""

import shutil
from collections import namedtuple

import pytest
from transformers import AutoModelForCausalLM

from lrk.train.disk_space import GIB, check_disk_space
from lrk.train.dry_run import dry_run
from lrk.train.engine import FSDP2, Engine
from lrk.train.pretrained import load_config
from lrk.train.session import set_up

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    def leave(number: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * number, number, number))

    return leave


@pytest.fixture
def parameters(model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        # Bytes a parameter: float32 weights of 4, and two moments of 4 in a checkpoint.
        ({"save_strategy": "no"}, 4),
        ({"save_strategy": "steps", "save_steps": 2}, 4 + 5 * 12),
        ({"save_strategy": "steps", "save_steps": 0.25}, 4 + 4 * 12),
        ({"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}, 4 + 3 * 12),
        ({"save_strategy": "steps", "save_steps": 2, "save_only_model": True}, 4 + 5 * 4),
        ({"save_strategy": "steps", "save_steps": 2, "dtype": "bfloat16"}, 2 + 5 * 6),
        ({"save_strategy": "steps", "save_steps": 2, "optim": "sgd"}, 4 + 5 * 4),
        ({"save_strategy": "steps", "save_steps": 2, "lora_rank": 2}, 4),
    ],
    ids=str,
)
def test_a_run_needs_so_many_bytes(arguments, parameters, free, changes, numbers):
    made = arguments(max_steps=10, **changes)
    config, needed = load_config(made), numbers * parameters
    free(needed)
    assert f"{needed / GIB:,.2f} GiB: the model" in check_disk_space(made, config, 10)
    free(needed - 1)
    with pytest.raises(ValueError, match=r"output_dir .* GiB left, but the run writes"):
        check_disk_space(made, config, 10)


def test_what_a_run_has_written_already_is_not_needed_again(arguments, parameters, free, tmp_path):
    made = arguments(overwrite_output_dir=True)
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-1" / "model.safetensors").write_bytes(bytes(4 * parameters))
    free(0)
    check_disk_space(made, load_config(made), 10)


@pytest.mark.parametrize("start", [dry_run, set_up])
def test_it_shows_before_the_weights_are_read(arguments, free, start):
    free(1000)
    with pytest.raises(ValueError, match="choose another folder, or set save_total_limit"):
        start(arguments())


def test_a_plan_for_another_machine_is_not_refused(arguments, free):
    free(1000)
    assert "at a time; NO: 0.00 are free on" in dry_run(arguments(dry_run=True, gpu="h100"))


@pytest.mark.parametrize(
    ("sharded", "numbers"),
    [
        # Float32 copies of bf16 weights, and moments of them; full, the model lies there twice.
        (True, 2 + 4 + 8),
        (False, 2 + 4 + 4 + 8),
    ],
)
def test_what_fsdp2_writes(arguments, free, parameters, monkeypatch, sharded, numbers):
    engine = Engine(FSDP2, 2, shards_checkpoints=sharded)
    monkeypatch.setattr("lrk.train.disk_space.engine_of", lambda arguments: engine)
    given = arguments(dtype="bfloat16", bf16=True, save_strategy="steps", save_steps=10)
    free(parameters * numbers)
    check_disk_space(given, load_config(given), steps=10)
    free(parameters * numbers - 1)
    with pytest.raises(ValueError, match="GiB left, but the run writes"):
        check_disk_space(given, load_config(given), steps=10)
