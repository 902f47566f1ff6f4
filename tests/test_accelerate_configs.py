"""configs/accelerate/: `accelerate launch` reads each file, and lrk-train runs as it says."""

import os
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers.utils.import_utils import is_accelerate_available

from lrk.train.engine import DDP, FSDP2
from studies.ranks import lrk_train, run_ranks
from studies.tiny import write_corpus, write_model

FOLDER = Path(__file__).parents[1] / "configs" / "accelerate"
EXPECTED = {"ddp": f"{DDP} on 2 processes", "fsdp2": f"{FSDP2} on 2 processes"}
EXPECTED["fsdp2_cp"] = f"{EXPECTED['fsdp2']}, 2 of which share a sample"


def environment(name: str, *words: str) -> dict[str, str]:
    """What `accelerate launch` sets for two processes, in float32 for a CPU."""
    launch = ["--config_file", str(FOLDER / f"{name}.yaml"), "--num_processes", "2", *words]
    parsed = launch_command_parser().parse_args([*launch, "--module", "lrk.train.command", "x"])
    arguments, *_ = _validate_launch_command(parsed)
    found = prepare_multi_gpu_env(arguments)
    changed = {key: value for key, value in found.items() if os.environ.get(key) != value}
    return changed | {"ACCELERATE_MIXED_PRECISION": "no"}


def test_every_file_is_tried():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize(
    "name",
    [
        "ddp",
        "fsdp2",
        pytest.param(
            "fsdp2_cp",
            marks=pytest.mark.skipif(
                not is_accelerate_available("1.12.0"), reason="sequence_parallel needs it"
            ),
        ),
    ],
)
def test_a_run(name, tmp_path):
    write_model(tmp_path / "model")
    write_corpus(tmp_path / "corpus", documents=12)
    options = {
        "model_name_or_path": tmp_path / "model",
        "data": tmp_path / "corpus" / "*.txt",
        "output_dir": tmp_path / "run",
        "target_length": 128,
        "train_length": 32,
        "max_steps": 1,
        "bf16": "false",
        "disable_tqdm": "true",
        "report_to": "none",
    }
    shares = ("--parallelism_config_cp_size", "2") if name == "fsdp2_cp" else ()
    variables = environment(name, *shares) | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    words = [f"--{key}={value}" for key, value in options.items()]
    for status, printed in run_ranks(lrk_train, 2, words, environment=variables):
        assert status == 0, printed
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    assert EXPECTED[name] in (tmp_path / "run" / "README.md").read_text()
