"""Plans: extrapolated exactly, changed by the settings as they must be, and found by length."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config

from lrk.plan import Plan, Settings, longest, plan, planner
from lrk.plan.ledger import (
    ATTENTION,
    DEVICE_PARTS,
    GRADIENTS,
    HOST,
    LOSS,
    OPTIMIZER,
    PARTS,
    SAVED,
    WEIGHTS,
)
from lrk.plan.planner import GIB, extrapolated
from lrk.plan.settings import LIGER_STYLE, STOCK
from lrk.plan.step import trace

SETTINGS = Settings(length=48)
DEEP = 5
WHOLE = ("embed_tokens", "norm")
IN_BACKWARD = {"optimizer_in_backward": True, "accumulates": False, "clips": False}


def parameters_of(config):
    hidden, vocab = config.hidden_size, config.vocab_size
    head_dim = hidden // config.num_attention_heads
    attention = 2 * hidden * hidden + 2 * hidden * config.num_key_value_heads * head_dim
    layer = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    return 2 * vocab * hidden + config.num_hidden_layers * layer + hidden


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="lrk"),
        pytest.param(
            {"activation_checkpointing": False, "accumulates": False}, id="no checkpoints"
        ),
        pytest.param({"implementation": STOCK, "optim": "adamw_torch"}, id="stock"),
        pytest.param({"lora_rank": 2, "optim": "adafactor"}, id="LoRA"),
        pytest.param(
            {"lora_rank": 2, "lora_modules_to_save": WHOLE, "optim": "adamw_torch_fused"},
            id="LoRA with embeddings and norms",
        ),
        pytest.param({"distill": "views", "bf16": True}, id="self-distillation, views"),
        pytest.param({"distill": "original", "lora_rank": 2}, id="self-distillation, original"),
        pytest.param(
            {
                "keep_attention": True,
                "tile_tokens": 16,
                "offload_activations": True,
                "offload_optimizer": True,
                "optim": "adamw_torch_fused",
                **IN_BACKWARD,
            },
            id="all techniques",
        ),
    ],
)
def test_extrapolation_is_exact(config, changes):
    """Every part at the fullest instant of every moment, and the FLOPs, to the byte."""
    config.num_hidden_layers = DEEP
    settings = dataclasses.replace(SETTINGS, **changes)
    found, full = extrapolated(config, settings), trace(config, settings)
    assert found.flops == full.flops
    assert found.usages == full.usages


@pytest.mark.parametrize("each", [2, 3])
def test_extrapolation_of_groups_is_exact(config, each):
    """Of each checkpoint the fullest instant, to the byte."""
    config.num_hidden_layers = 5 * each
    settings = dataclasses.replace(SETTINGS, tile_tokens=16, layers_per_checkpoint=each)
    found, full = extrapolated(config, settings), trace(config, settings)
    assert found.flops == full.flops
    phases = Plan("tiny", settings, *found).phases
    assert {name: usage.parts for name, usage in phases.items()} == {
        name: usage.parts for name, usage in Plan("tiny", settings, *full).phases.items()
    }


def test_rarer_checkpoints_save_fewer_inputs(config):
    config.num_hidden_layers = 6
    settings = dataclasses.replace(SETTINGS, tile_tokens=16)
    usual = plan("tiny", config, settings)
    rarer = plan("tiny", config, dataclasses.replace(settings, layers_per_checkpoint=2))
    saved = [each.phases["loss"].parts[SAVED] for each in (usual, rarer)]
    assert saved[0] - saved[1] == 3 * 48 * config.hidden_size * 2
    # The MLPs of the first layers, whose results the second ones need.
    products = 3 * 2 * 48 * config.hidden_size * config.intermediate_size
    assert rarer.flops - usual.flops == 3 * products


def forward_flops(config, *documents):
    """Of the layers, on rows of documents: 2 for a product and a sum."""
    linear = parameters_of(config) - 2 * config.vocab_size * config.hidden_size
    linear -= (2 * config.num_hidden_layers + 1) * config.hidden_size  # norms
    pairs = sum(length * (length + 1) // 2 for length in documents)
    return 2 * sum(documents) * linear + 4 * config.num_hidden_layers * pairs * config.hidden_size


def test_views_cost_a_forward_pass_and_the_divergence(config):
    plain, views = (
        plan("tiny", config, dataclasses.replace(SETTINGS, distill=distill))
        for distill in ("none", "views")
    )
    divergence = 4 * 2 * 48 * config.hidden_size * config.vocab_size
    assert views.flops - plain.flops == forward_flops(config, 48) + divergence
    # The teacher's hidden states wait for the loss.
    waiting = [each.phases["forward"].parts[SAVED] for each in (plain, views)]
    assert waiting[1] - waiting[0] == 48 * config.hidden_size * 2
    assert plain.phases.keys() | {"teacher"} == views.phases.keys()


def test_the_original_costs_its_weights_and_short_contexts(config):
    config.max_position_embeddings = 10
    plain, original, longer = (
        plan("tiny", config, dataclasses.replace(SETTINGS, **given))
        for given in ({}, {"distill": "original"}, {"distill": "original", "distill_length": 30})
    )
    assert original.settings.distill_length == 10
    weights = [each.peak.parts[WEIGHTS] for each in (plain, original)]
    assert 0 <= weights[1] - weights[0] - 2 * parameters_of(config) < 20_000
    head = config.hidden_size * config.vocab_size
    for each, short in ((original, 10), (longer, 30)):
        # A layer runs forward, again but for its last product, and backward with twice the
        # products, of attention 2.5 times.
        layers, width = config.num_hidden_layers, config.hidden_size
        attention = 4 * layers * (short * (short + 1) // 2) * width
        left_out = 2 * layers * short * width * config.intermediate_size
        student = 4 * forward_flops(config, short) + attention // 2 - left_out
        # None of it has labels.
        divergence = 4 * 2 * short * head
        teacher = forward_flops(config, short)
        assert each.flops - plain.flops == student + teacher + divergence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distill": "view"}, "distill is 'view'; it must be one of none, views, original"),
        (
            {"distill": "views", "implementation": STOCK},
            "distill is views; it needs impl",
        ),
        (
            {"distill": "original", "fsdp": 2, "optim": "adamw_torch"},
            "is original; it needs fsdp",
        ),
        ({"distill": "original", "attention": "sdpa"}, "and another attention than 'sdpa'"),
        ({"distill": "views", "distill_length": 8}, "distill_length is 8; it needs distill 'origi"),
        ({"distill": "original", "distill_length": 49}, "is 49; it must be at most length 48"),
    ],
)
def test_teachers_that_are_not_planned(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SETTINGS, **changes)


def test_layers_that_differ_are_traced_in_full(config):
    values = {**config.to_dict(), "use_sliding_window": True, "sliding_window": 8}
    values |= {"num_hidden_layers": 5, "max_window_layers": 2, "layer_types": None}
    qwen = Qwen2Config(**{k: v for k, v in values.items() if k != "model_type"})
    assert len(set(qwen.layer_types)) == 2
    assert plan("tiny", qwen, SETTINGS).usages == trace(qwen, SETTINGS).usages


def test_weights_gradients_and_moments_are_those_of_the_formula(config):
    count = parameters_of(config)
    settings = dataclasses.replace(SETTINGS, dtype="float32", optim="adamw_torch_fused", gpu="cpu")
    peak = plan("tiny", config, settings).peak
    # RoPE's two buffers of frequencies, and the batch, are the rest.
    assert 0 <= peak.parts[WEIGHTS] - 4 * count < 4096
    assert peak.parts[GRADIENTS] == 4 * count
    assert 0 <= peak.parts[OPTIMIZER] - 8 * count < 1024
    assert sum(peak.parts[part] for part in DEVICE_PARTS) == peak.total


def test_low_bit_moments_take_a_byte(config):
    peaks = {
        optim: plan("tiny", config, dataclasses.replace(SETTINGS, optim=optim)).phases["forward"]
        for optim in ("adamw_torch_fused", "adamw_torch_8bit", "adamw_torch_4bit")
    }
    in_bf16, in_8_bit, in_4_bit = (peak.parts[OPTIMIZER] for peak in peaks.values())
    assert in_4_bit < in_8_bit < in_bf16


def test_what_settings_change(config):
    config.vocab_size = 2000
    usual = plan("tiny", config, SETTINGS)

    def changed(**changes):
        return plan("tiny", config, dataclasses.replace(SETTINGS, **changes))

    # The fused loss never holds all logits, stock holds them more than once.
    logits = 48 * 2000 * 4
    stock = changed(implementation=STOCK)
    assert stock.phases["loss"].parts[LOSS] > 2 * logits
    saved = {
        name: changed(implementation=name).phases["loss"].parts[SAVED] for name in (LIGER_STYLE,)
    }
    assert saved[LIGER_STYLE] <= usual.phases["loss"].parts[SAVED]
    whole = changed(activation_checkpointing=False)
    assert whole.phases["loss"].parts[SAVED] > 3 * usual.phases["loss"].parts[SAVED]
    assert whole.flops < usual.flops
    assert changed(accumulates=False).phases["forward"].parts[GRADIENTS] == 0
    adapters = changed(lora_rank=2)
    assert adapters.peak.parts[GRADIENTS] < usual.peak.parts[GRADIENTS] / 4


def test_modules_that_are_trained_whole_are_there_twice(config):
    settings = dataclasses.replace(SETTINGS, lora_rank=2)
    alone = plan("tiny", config, settings)
    whole = plan("tiny", config, dataclasses.replace(settings, lora_modules_to_save=WHOLE))
    parameters = config.vocab_size * config.hidden_size
    parameters += (2 * config.num_hidden_layers + 1) * config.hidden_size
    extra = whole.peak.parts[WEIGHTS] - alone.peak.parts[WEIGHTS]
    size = getattr(torch, settings.dtype).itemsize
    rounding = 512 * (2 * config.num_hidden_layers + 2)  # one tensor each, of 512-byte blocks
    assert parameters * size <= extra <= parameters * size + rounding


def test_flops_of_a_step(config):
    """6 products of each weight with each token, a third of them again, and attention."""
    settings = dataclasses.replace(SETTINGS, activation_checkpointing=False)
    head = config.vocab_size * config.hidden_size
    matrices = parameters_of(config) - head - 5 * config.hidden_size
    pairs = 48 * 49 // 2
    attention = 2 * 7 * pairs * config.hidden_size * config.num_hidden_layers
    assert plan("tiny", config, settings).flops == 6 * 48 * matrices + attention


def test_no_mask_is_made_for_stock_attention(config):
    """transformers would make one of S x S elements for fake positions, which it cannot read."""
    config.num_hidden_layers = 1
    settings = Settings(length=8000, implementation=STOCK, activation_checkpointing=False)
    assert plan("tiny", config, settings).phases["forward"].total < 8000 * 8000


FLASH_ATTENTIONS = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


@pytest.mark.parametrize("attention", ["sdpa", *FLASH_ATTENTIONS])
def test_anothers_attention(config, attention):
    """Without its package; exact between layers, of the same products, and it keeps as much."""
    config.num_hidden_layers = DEEP
    changed = dataclasses.replace(
        SETTINGS, attention=attention, activation_checkpointing=False, layers_per_checkpoint=1
    )
    own = plan("tiny", config, dataclasses.replace(changed, attention="lrk"))
    found, full = plan("tiny", config, changed), trace(config, changed)
    assert found.usages == full.usages
    assert found.flops == full.flops == own.flops
    saved = [each.phases["loss"].parts[SAVED] for each in (found, own)]
    boundaries = 2 * 512  # of what the patched batch holds beside it
    assert abs(saved[0] - saved[1]) <= DEEP * boundaries


@pytest.mark.parametrize("attention", FLASH_ATTENTIONS)
def test_flash_attention_allocates_float32_sums(config, attention):
    """48 tokens in a tile of 128, 4 heads of 16 numbers on 2 of keys."""
    config.num_hidden_layers = 1
    settings = dataclasses.replace(SETTINGS, attention=attention)
    workspace = plan("tiny", config, settings).phases["backward"].parts[ATTENTION]
    rows = 4 * 128
    expected = {
        "flash_attention_2": 4 * rows * 32 + 4 * rows + 2 * 4 * 48 * 16 * 2,
        "flash_attention_3": 4 * rows * 64 + 8 * rows + 2 * 4 * 2 * 128 * 64,
        "flash_attention_4": 4 * rows * 32 + 8 * rows + 2 * 4 * 2 * 128 * 32,
    }
    assert workspace == expected[attention]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention": "flash"}, "attention is 'flash'; it must be one of lrk, sdpa, flash_attent"),
        ({"attention": "sdpa", "implementation": STOCK}, "attention is sdpa; it needs implementat"),
        ({"attention": "flash_attention_2", "gpu": "cpu"}, "is flash_attention_2; it needs a GPU"),
        (
            {"attention": "flash_attention_2", "dtype": "float32"},
            "flash_attention_2; it needs dtype bfloat16 or float16, or bf16 autocast",
        ),
        (
            {"attention": "sdpa", "dtype": "float32"},
            "attention is sdpa; it needs dtype bfloat16 or float16, or bf16 autocast",
        ),
        (
            {"attention": "sdpa", "keep_attention": True},
            "keep_attention is True; it needs activation_checkpointing, implementation 'lrk' and "
            "attention 'lrk'",
        ),
    ],
)
def test_what_another_attention_needs(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SETTINGS, **changes)


def test_longest(config):
    """The longest in steps, as the next step shows."""
    gib = plan("tiny", config, dataclasses.replace(SETTINGS, length=5000)).device_gib
    found = longest("tiny", config, SETTINGS, gib)
    assert found.settings.length == 5000 // 256 * 256
    with pytest.raises(ValueError, match=r"more than 0\.5 GiB"):
        longest("tiny", config, SETTINGS, 0.5)


def test_longest_where_the_optimizer_hides_the_length():
    """A peak that is flat up to 65,536 tokens: no line through it, or through its first rise."""
    tried = []

    def plan_of(_model, _config, settings):
        tried.append(settings.length)
        gib = max(10.0, settings.length / 8192 + 1e-9 * settings.length)
        return SimpleNamespace(settings=settings, device_gib=gib)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "plan", plan_of)
        found = longest("tiny", None, SETTINGS, 20.0)
    assert found.settings.length == (20 * 8192 - 1) // 256 * 256
    assert max(tried) <= 4 * 20 * 8192


def test_the_longest_is_at_least_as_long_as_a_short_context(config, monkeypatch):
    def plan_of(_model, _config, settings):
        return SimpleNamespace(settings=settings, device_gib=settings.length / 1024)

    monkeypatch.setattr(planner, "plan", plan_of)
    settings = dataclasses.replace(SETTINGS, length=999, distill="original", distill_length=999)
    assert longest("tiny", config, settings, 20.0).settings.length == 20 * 1024
    assert longest("tiny", config, settings, 1.0).settings.length == 1024
    with pytest.raises(ValueError, match=r"1\.0 GiB at 1024 tokens, more than 0\.9 GiB"):
        longest("tiny", config, settings, 0.9)


def test_kept_attention_costs_memory_and_saves_flops(config):
    """Outputs of 64 and lse of 4 heads for 48 tokens a layer; the forward pass of attention."""
    kept = plan("tiny", config, dataclasses.replace(SETTINGS, keep_attention=True))
    usual = plan("tiny", config, SETTINGS)
    layers, pairs = config.num_hidden_layers, 48 * 49 // 2
    assert usual.flops - kept.flops == layers * 2 * 2 * pairs * 64
    saved = [each.phases["loss"].parts[SAVED] for each in (kept, usual)]
    assert saved[0] - saved[1] == layers * (48 * 64 * 2 + 48 * 4 * 4 + (-48 * 4 * 4) % 512)


def test_tiles_bound_what_a_layer_computes_again(config):
    """Two layers of 480 tokens: in place of all of an MLP's inside, that of a tile."""
    settings = Settings(length=480, dtype="float32", optim="sgd", gpu="cpu")
    whole = plan("tiny", config, settings).phases["backward"]
    tiled = plan("tiny", config, dataclasses.replace(settings, tile_tokens=32)).phases["backward"]
    inside = 480 * config.intermediate_size * 4
    assert whole.total - tiled.total > 4 * inside
    assert tiled.parts[SAVED] == whole.parts[SAVED]


def test_offloaded_activations_leave_the_device(config):
    """All inputs of layers are on the host, and two of them on the device at a time."""
    config.num_hidden_layers = 6
    kept = plan("tiny", config, SETTINGS).phases["loss"]
    gone = plan("tiny", config, dataclasses.replace(SETTINGS, offload_activations=True))
    one = 48 * config.hidden_size * 2
    loss = gone.phases["loss"]
    assert loss.parts[HOST] == 6 * one
    assert kept.parts[SAVED] - loss.parts[SAVED] == 5 * one
    assert loss.total == kept.total - 5 * one


def test_optimizer_on_the_host(config):
    settings = dataclasses.replace(SETTINGS, optim="adamw_torch_fused")
    here = plan("tiny", config, settings).phases["optimizer"]
    there = plan("tiny", config, dataclasses.replace(settings, offload_optimizer=True))
    there = there.phases["optimizer"]
    assert here.parts[OPTIMIZER] >= 2 * 2 * parameters_of(config)
    assert there.parts[OPTIMIZER] == 0
    assert there.parts[HOST] >= here.parts[OPTIMIZER]


def test_gradients_go_as_they_come(config):
    usual = dataclasses.replace(SETTINGS, **IN_BACKWARD | {"optimizer_in_backward": False})
    held, gone = (
        plan("tiny", config, each).phases
        for each in (usual, dataclasses.replace(SETTINGS, **IN_BACKWARD))
    )
    every = 2 * parameters_of(config)
    assert held["optimizer"].parts[GRADIENTS] >= every
    assert gone["optimizer"].parts[GRADIENTS] == 0
    assert gone["backward"].parts[GRADIENTS] < every / 2


def test_report_has_the_pinned_keys(config):
    report = plan("tiny", config, SETTINGS).report(tokens=10**6, dollars_per_hour=2.0)
    keys = ["model", "length", "settings", "peak_gib", "parts", "flops", "sent_gib", "estimate"]
    assert list(report) == keys
    assert list(report["parts"]) == list(PARTS)
    assert report["parts"].pop("offloaded_to_host") == 0
    assert sum(report["parts"].values()) == pytest.approx(report["peak_gib"])
    assert report["peak_gib"] * GIB == plan("tiny", config, SETTINGS).peak.total
    estimate = report["estimate"]
    assert estimate["dollars"] == pytest.approx(estimate["days"] * 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 1}, "length is 1; it must be at least 2"),
        ({"optim": "adam"}, "optim is 'adam'; it must be one of adamw_torch_fused, "),
        ({"gpu": "h1000"}, "gpu is 'h1000'"),
        ({"implementation": "liger"}, "implementation is 'liger'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"keep_attention": True, "implementation": STOCK}, "keep_attention is True; it needs"),
        ({"tile_tokens": -1}, "tile_tokens is -1"),
        (
            {"offload_activations": True, "activation_checkpointing": False},
            "offload_activations is True; it needs activation_checkpointing",
        ),
        ({"optimizer_in_backward": True}, "it needs accumulates and clips to be false"),
        ({"offload_optimizer": True}, "it needs one of the optim adamw_torch_fused"),
        (
            {"lora_modules_to_save": ("norm",)},
            r"lora_modules_to_save is \('norm',\); it needs lora_rank to be positive",
        ),
        ({"load_in_4bit": True}, "load_in_4bit is True; it needs lora_rank to be positive"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes)


def test_nothing_is_left_behind(config):
    """Modes and patches end with the plan: real models train as before."""
    plan("tiny", config, SETTINGS)
    assert type(torch.empty(1)) is torch.Tensor
    assert torch.ones(2).sum() == 2
