"""How a run is spread, by arguments and by the environment of `accelerate launch`; what is refused.

No processes are started here, but where it is said: their number is set.
"""

import io
import json
import pickle
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers import AutoConfig
from transformers.training_args import ParallelMode
from transformers.utils.import_utils import is_accelerate_available

from lrk.train import LrkTrainingArguments, train
from lrk.train.command import main
from lrk.train.engine import DDP, FSDP2, ONE_PROCESS, Engine, engine_of
from lrk.train.model_card import model_card
from lrk.train.parser import parse
from lrk.train.steps import samples_a_step
from lrk.train.telemetry import Throughput
from studies.ranks import fsdp_on_cpu, lrk_train, run_ranks

OF_1_12 = pytest.mark.skipif(
    not is_accelerate_available("1.12.0"), reason="transformers takes no ParallelismConfig"
)
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}


def cp(size: int, **others: int) -> dict[str, str]:
    sizes = {"cp_size": size} | others
    return {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"} | {
        f"PARALLELISM_CONFIG_{name.upper()}": str(number) for name, number in sizes.items()
    }


@pytest.fixture
def spread(arguments, monkeypatch):
    """Arguments in a process of so many, with the environment of a launcher.

    Of DeepSpeed, which is not installed, they only read the configuration.
    """
    monkeypatch.setattr(
        "transformers.integrations.deepspeed.HfTrainerDeepSpeedConfig", _ReadConfiguration
    )
    monkeypatch.setattr(DeepSpeedPlugin, "set_deepspeed_weakref", lambda plugin: None)

    def make(processes=1, environment=(), **changes):
        if processes > 1:
            monkeypatch.setattr(LrkTrainingArguments, "world_size", processes)
            monkeypatch.setattr(LrkTrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
        for name, value in dict(environment).items():
            monkeypatch.setenv(name, value)
        return arguments(**changes)

    return make


class _ReadConfiguration(HfDeepSpeedConfig):
    def trainer_config_process(self, arguments) -> None:
        """Fills in what is left to the arguments, which nobody asks for here."""


def zero(stage) -> dict:
    return {"zero_optimization": {"stage": stage}, "train_micro_batch_size_per_gpu": "auto"}


@pytest.mark.parametrize(
    ("processes", "environment", "given", "expected"),
    [
        (1, {}, {}, Engine(ONE_PROCESS, 1)),
        (8, {}, {}, Engine(DDP, 8)),
        (8, {}, {"fsdp": True}, Engine(FSDP2, 8)),
        (8, {}, {"fsdp": "full_shard auto_wrap"}, Engine(FSDP2, 8)),
        (8, {}, {"fsdp": "false"}, Engine(DDP, 8)),
        (8, {"ACCELERATE_USE_FSDP": "false"}, {}, Engine(DDP, 8)),
        (8, FSDP, {}, Engine(FSDP2, 8, shards_checkpoints=True)),
        (8, FSDP | {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, {}, Engine(FSDP2, 8)),
        (
            8,
            FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            {"fsdp": True, "fsdp_config": {"state_dict_type": "sharded_state_dict"}},
            Engine(FSDP2, 8, shards_checkpoints=True, checkpoints_activations=True),
        ),
        (8, ZERO, {}, Engine("ZeRO-2", 8)),
        (8, ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {}, Engine("ZeRO-3", 8)),
        (8, {}, {"deepspeed": zero(1)}, Engine("ZeRO-1", 8)),
        (8, {}, {"deepspeed": zero("auto")}, Engine("ZeRO-2", 8)),
        (1, {}, {"deepspeed": zero(3)}, Engine("ZeRO-3", 1)),
    ],
)
def test_the_engine_is_that_of_arguments_else_that_of_the_launcher(
    spread, processes, environment, given, expected
):
    found = engine_of(spread(processes, environment, **given))
    assert found == expected
    assert found.shards_weights == (expected.name in (FSDP2, "ZeRO-3"))
    assert found.data_parallel == processes


@pytest.mark.parametrize("of", ["deepspeed", "ACCELERATE_DEEPSPEED_CONFIG_FILE"])
def test_the_stage_of_a_file(spread, tmp_path, of):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(zero(3)))
    launched = of.isupper()
    made = spread(
        2, ZERO | {of: str(path)} if launched else {}, **({} if launched else {of: str(path)})
    )
    assert engine_of(made).name == "ZeRO-3"


@OF_1_12
@pytest.mark.parametrize(
    ("environment", "given"),
    [
        ({}, {"sequence_parallel": 2}),
        (FSDP | {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, {"sequence_parallel": 2}),
        (cp(2, dp_shard_size=4), {}),
        (cp(2, dp_shard_size=4), {"sequence_parallel": 2}),
        ({}, {"parallelism_config": ParallelismConfig(cp_size=2, dp_shard_size=4)}),
    ],
)
def test_samples_are_shared_by_argument_or_launcher(spread, environment, given):
    made = spread(8, environment, **given)
    assert engine_of(made) == Engine(FSDP2, 8, sequence_parallel=2)
    assert engine_of(made).data_parallel == 4
    assert str(engine_of(made)) == "FSDP2 on 8 processes, 2 of which share a sample"
    assert made.sequence_parallel == 2
    text = made.to_yaml()
    assert yaml.safe_load(text)["sequence_parallel"] == 2
    assert "parallelism_config" not in text


@OF_1_12
def test_sizes_of_processes_survive_a_file_and_their_groups_do_not(spread, tmp_path):
    made = spread(8, sequence_parallel=4)
    assert (made.parallelism_config.cp_size, made.parallelism_config.dp_shard_size) == (4, 2)
    made.parallelism_config.device_mesh = lambda: "a process group has no bytes"
    again = pickle.loads(pickle.dumps(made))
    assert again.parallelism_config.cp_size == 4
    assert again.parallelism_config.device_mesh is None
    assert made.parallelism_config.device_mesh is not None
    made.to_json_string()
    (tmp_path / "config.yaml").write_text(made.to_yaml())
    assert engine_of(parse([str(tmp_path / "config.yaml")])) == engine_of(made)


SP = {"sequence_parallel": 2}
ZERO_3 = ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
CHECKPOINTS = {"gradient_checkpointing": True}
BEST = {
    "load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "best",
    "eval_data": ["held_out"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("processes", "environment", "given", "sentence"),
    [
        (8, {}, {"fsdp": True, "fsdp_config": {"version": 1}}, "version 1, which is deprecated .*"
            r"use FSDP2: fsdp_config.version 2, or --fsdp_version 2"),
        (8, {"ACCELERATE_USE_FSDP": "true"}, {}, "version 1, which is deprecated"),
        (8, FSDP | {"FSDP_VERSION": "1"}, {}, "version 1, which is deprecated"),
        (8, ZERO, {"fsdp": True}, "FSDP and DeepSpeed are both asked for"),
        (8, FSDP, {"deepspeed": zero(2)}, "FSDP and DeepSpeed are both asked for"),
        (8, {"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "Megatron-LM, which has models of its own"),
        (8, cp(1, tp_size=2, dp_shard_size=4) | FSDP, {}, "2 processes are to share every weight"),
        (8, {}, {"sequence_parallel": 0}, "sequence_parallel is 0; it must be at least 1"),
        (8, {}, {"sequence_parallel": 3}, "sequence_parallel is 3 with 8 processes; it must divide "
            "their number, such as torchrun --nproc_per_node 3 starts"),
        (1, {}, SP, "sequence_parallel is 2 with 1 process; it must divide"),
        (8, {}, {"sequence_parallel": 8, "train_length": 24}, "train_length is 24 with "
            "sequence_parallel 8; it must be a multiple of 16"),
        (8, {}, SP | {"kernels": {"attention": "sdpa"}, "pack": False}, "sequence_parallel is 2 "
            "with kernels.attention 'sdpa'; transformers' own sees the tokens of one process"),
        (8, {}, SP | {"kernels": {"cross_entropy": False}}, "with kernels.cross_entropy False; "),
        (8, {}, SP | {"kernels": {"rope": False}}, "with kernels.rope False; transformers' own"),
        (8, {}, SP | {"fsdp": False}, "sequence_parallel is 2 with fsdp false; it needs FSDP2"),
        (2, {}, {"average_tokens_across_devices": False}, "average_tokens_across_devices is false "
            "with 2 processes; it must be true"),
        (8, FSDP, {"optim": "adafactor"}, "optim is adafactor with FSDP2, .* adamw_torch_fused"),
        (8, FSDP, {"optim": "paged_lion_8bit"}, "optim is paged_lion_8bit with FSDP2"),
        (8, {}, SP | {"deepspeed": zero(2)}, "sequence_parallel is 2 with DeepSpeed; it needs"),
        (8, ZERO, SP, "sequence_parallel is 2 with DeepSpeed; it needs FSDP2"),
        (8, cp(4, dp_shard_size=2) | FSDP, SP, "sequence_parallel is 2, but accelerate's cp_size "
            "is 4"),
        (8, FSDP, {"offload_optimizer": True}, "offload_optimizer is true with FSDP2, .* use "
            r"fsdp_config.cpu_offload, or --fsdp_offload_params of accelerate launch"),
        (8, ZERO_3, {"offload_optimizer": True}, "offload_optimizer is true with ZeRO-3, .* use "
            r"zero_optimization.offload_optimizer of the DeepSpeed"),
        (8, ZERO, {"offload_optimizer": True}, "offload_optimizer is true with ZeRO-2"),
        (8, {}, {"optimizer_in_backward": True, "max_grad_norm": 0}, "optimizer_in_backward is "
            "true with 8 processes; it needs one"),
        (8, ZERO_3, {"tile_tokens": 16}, "tile_tokens is 16 with ZeRO-3"),
        (8, ZERO_3, {"auto_find_batch_size": True}, "auto_find_batch_size is true with ZeRO-3"),
        (8, ZERO, {"distill": "views"}, "distill is 'views' with ZeRO-2, on which no teacher was"),
        (8, ZERO_3, {"distill": "original"}, "distill is 'original' with ZeRO-3, on which no"),
        (8, FSDP, {"distill": "original"}, "distill is 'original' with FSDP2; the teacher is a "
            "second model, which nothing shards: use 'views', or DDP"),
        (8, FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, CHECKPOINTS, "FSDP's "
            "activation_checkpointing is on beside that of the arguments"),
        (8, FSDP, {"save_only_model": True}, "save_only_model is true with FSDP's SHARDED_STATE"),
        (8, {}, BEST | {"save_only_model": True, "fsdp": True}, "save_only_model is true with "
            "load_best_model_at_end and FSDP2"),
        (8, ZERO, BEST | {"save_only_model": True}, "save_only_model is true with "
            "load_best_model_at_end and ZeRO-2"),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_do(spread, processes, environment, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        spread(processes, environment, **given)


@OF_1_12
@pytest.mark.parametrize("given", [{}, SP])
def test_accelerates_ulysses_is_refused(spread, given):
    with pytest.raises(ValueError, match=r"sp_size is 2: .* no packed documents .* use "
                                         "sequence_parallel instead"):  # fmt: skip
        spread(8, cp(1, sp_size=2), **given)


@OF_1_12
def test_replicas_of_shards_are_not_dropped_for_shared_samples(spread):
    with pytest.raises(ValueError, match="sequence_parallel is 2 beside a parallelism_config "
                                         "without cp_size; give it cp_size 2"):  # fmt: skip
        spread(8, cp(1, dp_replicate_size=2, dp_shard_size=4) | FSDP, **SP)


@pytest.mark.skipif(is_accelerate_available("1.12.0"), reason="what older releases lack")
def test_an_older_accelerate_has_no_shared_samples(spread):
    with pytest.raises(ValueError, match=r"sequence_parallel is 2, which needs accelerate 1\.12"):
        spread(8, **SP)


def test_weights_of_4_bits_are_not_sharded(spread, monkeypatch):
    monkeypatch.setattr("lrk.train.arguments.lora.is_bitsandbytes_available", lambda: True)
    spread(8, lora_rank=2, load_in_4bit=True)
    with pytest.raises(ValueError, match="load_in_4bit is true with FSDP2, which does not shard"):
        spread(8, FSDP, lora_rank=2, load_in_4bit=True)


def test_deepspeed_that_is_not_installed(arguments, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="accelerate launch asks for DeepSpeed, which cannot be"):
        arguments()


def test_fsdp_in_a_process_that_nobody_started_shards_nothing_and_says_so(arguments, caplog):
    assert engine_of(arguments(fsdp=True)).name == ONE_PROCESS
    assert "it is the only one, and nothing is sharded" in caplog.text


@pytest.mark.parametrize("written", ["true", "True", "full_shard"])
def test_fsdp_in_a_file_is_a_truth_or_an_older_text(options, tmp_path, written):
    words = [f"--{name}={options[name]}" for name in ("model_name_or_path", "output_dir")]
    (tmp_path / "config.yaml").write_text(f"fsdp: {written}\ndata: [x]\n")
    made = parse([str(tmp_path / "config.yaml"), *words])
    assert made.fsdp is True
    (tmp_path / "again.yaml").write_text(made.to_yaml())
    assert parse([str(tmp_path / "again.yaml")]).fsdp is True


@pytest.mark.parametrize(
    ("name", "made"),
    [
        (FSDP2, DistributedType.MULTI_CPU),
        (FSDP2, DistributedType.DEEPSPEED),
        ("ZeRO-3", DistributedType.MULTI_CPU),
        (DDP, DistributedType.FSDP),
        (DDP, DistributedType.MEGATRON_LM),
    ],
)
def test_what_accelerate_makes_is_compared(name, made):
    for fitting in {FSDP2: "FSDP", "ZeRO-3": "DEEPSPEED", DDP: "MULTI_GPU"}.items():
        Engine(fitting[0], 2).check_made(DistributedType[fitting[1]])
    Engine(ONE_PROCESS, 1).check_made(DistributedType.NO)
    with pytest.raises(ValueError, match=f"{name} is asked for, but accelerate makes {made.value}"):
        Engine(name, 2).check_made(made)


def words_of(options: dict[str, Any], **changes: Any) -> list[str]:
    given = {name: value for name, value in (options | changes).items() if name != "data"}
    return [f"--{name}={value}" for name, value in given.items()] + ["--data", *options["data"]]


def without_fsdp_on_a_cpu(words: list[str]) -> tuple[int, str]:
    printed = io.StringIO()
    with redirect_stderr(printed):
        return main(words), printed.getvalue()


def test_fsdp_on_a_cpu_is_refused_and_nothing_is_trained(options, tmp_path):
    cache = {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    words = words_of(options, fsdp="true")
    for status, printed in run_ranks(without_fsdp_on_a_cpu, 2, words, environment=cache):
        assert status == 2
        assert "FSDP2 is asked for, but accelerate makes MULTI_CPU of it here" in printed
    assert not any((tmp_path / "run").iterdir())


def test_a_dry_run_of_two_processes_counts_both_and_prints_once(options):
    cache = {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    own = {"dry_run": "true", "gradient_accumulation_steps": 3, "kernels.rope": "false"}
    words = words_of(options, fsdp="true", **own)
    (status, printed), (other, nothing) = run_ranks(lrk_train, 2, words, environment=cache)
    assert (status, other) == (0, 0)
    assert (
        "  a step           6 samples, 192 tokens\n  engine           FSDP2 on 2 processes\n"
        in printed
    )
    assert "Token plan" not in nothing


@OF_1_12
def test_samples_that_are_shared_count_once(spread, model_folder):
    made = spread(
        8, sequence_parallel=4, per_device_train_batch_size=2, gradient_accumulation_steps=3
    )
    assert samples_a_step(made) == 2 * 3 * (8 // 4)
    config = AutoConfig.from_pretrained(model_folder)
    card = model_card(made, config, [{"step": 5, "loss": 2.0}], None)
    assert "| samples a step | 12 |\n" in card
    assert "| engine | FSDP2 on 8 processes, 4 of which share a sample |\n" in card
    assert f"| tokens in all | {5 * 12 * 32:,} |\n" in card


def tokens_of_a_step(options: dict[str, Any], cache: Path) -> float:
    """What a run logs as tokens of a second, if a step takes one."""
    datasets.config.HF_DATASETS_CACHE = cache
    Throughput.read = lambda throughput: throughput.tokens
    with fsdp_on_cpu():
        trainer = train(LrkTrainingArguments(**options, max_steps=1))
    return trainer.state.log_history[0]["tokens_per_second"]


@pytest.mark.parametrize(
    ("given", "samples"),
    [({"fsdp": True}, 2), pytest.param({"sequence_parallel": 2}, 1, marks=OF_1_12)],
)
def test_tokens_of_shared_samples_count_once(options, given, samples):
    del options["max_steps"]
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    found = run_ranks(tokens_of_a_step, 2, options | given, cache)
    assert found == [samples * options["train_length"]] * 2
