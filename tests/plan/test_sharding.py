"""One rank of several: what it allocates beside what ranks allocate, and what it sends."""

import dataclasses
import warnings

import pytest
import torch
import torch.distributed as dist
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

from lrk.fsdp import steps_plain_tensors
from lrk.plan import Settings, plan, sharding, traffic
from lrk.plan.ledger import GRADIENTS, OPTIMIZER, WEIGHTS, Collective
from lrk.plan.planner import extrapolated
from lrk.plan.settings import OPTIMIZERS
from lrk.plan.sharding import as_one_of
from lrk.plan.step import trace
from lrk.plan.traffic import GATHER, KEYS, PARAMETERS, REDUCE
from studies.sharded_plans import (
    TECHNIQUES_OF_EXPERTS,
    compare,
    narrow_llama,
    narrow_qwen3_moe,
)

SETTINGS = Settings(length=64, optim="adamw_torch_fused", accumulates=False, fsdp=4)


def compared(most, *args, **options):
    """What `compare` finds; up to three times, until all errors are below `most`.

    A layer that was gathered is freed when the thread of its collective lets go, and on a busy
    machine that may be late.
    """
    for _ in range(3):
        rows = list(compare(*args, **options))
        if all(abs(row.error) < most for row in rows):
            break
    return rows


@pytest.mark.parametrize(
    ("processes", "techniques"),
    [
        (2, ["the same, tiles", "accumulated, whole gradients", "LoRA"]),
        (4, ["two to a sample"]),
    ],
)
def test_plan_is_what_the_ranks_record(processes, techniques):
    """With tokens enough that activations are most of the peak."""
    rows = compared(0.03, processes, 256, techniques, narrow_llama(layers=2))
    assert [row.technique for row in rows] == techniques
    assert {row.technique: row.error for row in rows if abs(row.error) > 0.03} == {}


def test_plan_of_experts_that_share_a_sample():
    techniques = list(TECHNIQUES_OF_EXPERTS)
    [row] = compared(0.01, 2, 512, techniques, narrow_qwen3_moe(layers=2), rounds=8)
    assert abs(row.error) < 0.01


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_optimizers_of_sharded_tensors(optim):
    """`lrk-train` asks the same."""
    assert steps_plain_tensors(optim) == (optim in ("adafactor", "adamw_bnb_8bit"))


def test_the_loss_is_not_rounded(config, monkeypatch):
    """The policy that `LrkTrainer` has."""
    policies = []

    def prepare(accelerator, model):
        policies.append(accelerator.state.fsdp_plugin.mixed_precision_policy)
        return fsdp2_prepare_model(accelerator, model)

    monkeypatch.setattr(sharding, "fsdp2_prepare_model", prepare)
    trace(config, dataclasses.replace(SETTINGS, bf16=True))
    [policy] = policies
    assert policy.output_dtype is None
    assert not policy.cast_forward_inputs
    assert policy.param_dtype == policy.reduce_dtype == torch.bfloat16


@pytest.mark.parametrize("shared", [1, 2])
def test_no_warning_of_pytorch_reaches_the_user(config, shared):
    """Tiles leave views behind, accelerate slices a mesh."""
    settings = dataclasses.replace(SETTINGS, sequence_parallel=shared, tile_tokens=16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace(config, settings)
    ours = ("Slicing a flattened", "returned a view tensor")
    assert [str(w.message) for w in caught if any(o in str(w.message) for o in ours)] == []


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("c10d::_allgather_base_", "no all-gather of parameters was seen"),
        ("c10d::_reduce_scatter_base_", "no reduce-scatter of parameters was seen"),
    ],
)
def test_operations_of_another_name_are_not_free(config, monkeypatch, gone, message):
    known = {
        f"{name}of_another_release" if name == gone else name: each
        for name, each in traffic._COLLECTIVES.items()
    }
    monkeypatch.setattr(traffic, "_COLLECTIVES", known)
    with pytest.raises(RuntimeError, match=message):
        trace(config, SETTINGS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full parameters"),
        pytest.param(
            {"bf16": True, "accumulates": True, "sync_each_batch": False}, id="whole gradients"
        ),
        pytest.param({"sequence_parallel": 2, "tile_tokens": 16}, id="two to a sample"),
        pytest.param({"lora_rank": 2}, id="LoRA"),
    ],
)
def test_extrapolation_is_exact(config, changes):
    config.num_hidden_layers = 5
    settings = dataclasses.replace(SETTINGS, **changes)
    assert extrapolated(config, settings) == trace(config, settings)


def test_shards_of_weights_gradients_and_moments(config):
    whole, shard = (
        plan("tiny", config, dataclasses.replace(SETTINGS, fsdp=fsdp)).phases["optimizer"]
        for fsdp in (1, 4)
    )
    for part in (WEIGHTS, GRADIENTS, OPTIMIZER):
        # Granules of the allocator and buffers are not divided.
        assert shard.parts[part] == pytest.approx(whole.parts[part] / 4, abs=40_000)


def test_bf16_has_masters_in_float32(config):
    peaks = [
        plan("tiny", config, dataclasses.replace(SETTINGS, bf16=bf16)).phases["optimizer"]
        for bf16 in (False, True)
    ]
    assert peaks[1].parts[OPTIMIZER] == pytest.approx(2 * peaks[0].parts[OPTIMIZER], rel=0.2)
    assert peaks[1].parts[WEIGHTS] > peaks[0].parts[WEIGHTS]


def test_gradients_of_micro_batches_are_whole_unless_they_are_reduced(config):
    whole, reduced = (
        plan("tiny", config, dataclasses.replace(SETTINGS, accumulates=True, sync_each_batch=syncs))
        for syncs in (False, True)
    )
    gradients = [each.phases["forward"].parts[GRADIENTS] for each in (whole, reduced)]
    assert gradients[0] == pytest.approx(4 * gradients[1], rel=0.2)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_what_a_rank_sends(config, checkpoints):
    settings = dataclasses.replace(
        SETTINGS, sequence_parallel=2, activation_checkpointing=checkpoints
    )
    sent = trace(config, settings).sent
    head_dim = config.hidden_size // config.num_attention_heads
    keys = config.num_hidden_layers * 2 * config.num_key_value_heads * head_dim * 64 * 2 // 2
    assert sent[Collective(REDUCE, KEYS)] == keys
    assert sent[Collective(GATHER, KEYS)] == keys * (2 if checkpoints else 1)
    parameters = sent[Collective(REDUCE, PARAMETERS)]
    weights = plan("tiny", config, dataclasses.replace(settings, fsdp=1, sequence_parallel=1))
    # Of bf16 each; weights of a plan have RoPE's buffers and the allocator's granules beside them.
    assert parameters == pytest.approx(0.75 * weights.usages[0].parts[WEIGHTS], rel=0.1)
    assert parameters < sent[Collective(GATHER, PARAMETERS)] <= 2 * parameters


def test_a_process_of_a_run_asks_another():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert as_one_of(8, dist.get_world_size) == 8
        assert dist.get_world_size() == 1
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp": 10_000}, "fsdp is 10000; it must be at most 1024: PyTorch cuts each weight"),
        ({"optim": "adafactor"}, "optim is adafactor with fsdp 4; it knows nothing of FSDP2's"),
        ({"optim": "adamw_bnb_8bit"}, "optim is adamw_bnb_8bit with fsdp 4; it knows nothing"),
        ({"fsdp": 0}, "fsdp is 0; it must be at least 1"),
        ({"sequence_parallel": -1}, "sequence_parallel is -1; it must be at least 1"),
        ({"sequence_parallel": 3}, "sequence_parallel is 3; it must divide the 4 processes of"),
        ({"fsdp": 1, "sequence_parallel": 2}, "sequence_parallel is 2; it must divide the 1 proc"),
        ({"sequence_parallel": 4, "length": 66}, "length is 66; with sequence_parallel 4 it must"),
        ({"offload_optimizer": True}, "offload_optimizer is True; it needs fsdp to be 1"),
        (
            {"optimizer_in_backward": True, "clips": False},
            "optimizer_in_backward is True; it needs fsdp to be 1",
        ),
        ({"lora_rank": 2, "load_in_4bit": True}, "load_in_4bit is True; it needs fsdp to be 1"),
        ({"sequence_parallel": 2, "attention": "sdpa"}, "sequence_parallel is 2; it needs impl"),
        (
            {"sync_each_batch": False},
            "sync_each_batch is False; it needs fsdp above 1, accumulates",
        ),
    ],
)
def test_what_cannot_be_spread(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes)
