"""Weights of 4 bits are planned as transformers, bitsandbytes and peft make them."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoModelForCausalLM, Qwen2Config

from lrk.plan import Plan, Settings, four_bits, plan
from lrk.plan.check import compare, settings_of
from lrk.plan.ledger import GRADIENTS, OPTIMIZER, TEMPORARY, WEIGHTS
from lrk.plan.planner import extrapolated
from lrk.plan.step import materialise_parameters, meta_model, trace
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.lora import add_lora
from lrk.train.pretrained import load_model

bitsandbytes = pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")

SETTINGS = Settings(length=48, lora_rank=2, load_in_4bit=True, optim="adamw_torch_fused")


@pytest.fixture
def biased(config) -> Qwen2Config:
    values = config.to_dict()
    return Qwen2Config(**{name: value for name, value in values.items() if name != "model_type"})


def storage(model):
    """Dtype and bytes of each parameter, and of what lies beside those of 4 bits."""
    parameters = dict(model.named_parameters())
    named = {name: (p.dtype, p.nbytes) for name, p in parameters.items()}
    scales = [(scale.dtype, scale.nbytes) for scale in four_bits.scales_of(model)]
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    return named, scales, [(m.compute_dtype, m.weight.quant_state.dtype) for m in layers]


@pytest.mark.parametrize(
    ("dtype", "bf16"), [("float32", False), ("float32", True), ("bfloat16", False)]
)
def test_a_planned_model_is_stored_as_the_trainers(biased, tmp_path, dtype, bf16):
    AutoModelForCausalLM.from_config(biased).save_pretrained(tmp_path)
    arguments = LrkTrainingArguments(
        model_name_or_path=str(tmp_path),
        data=["-"],
        output_dir=str(tmp_path / "run"),
        target_length=64,
        dtype=dtype,
        bf16=bf16,
        lora_rank=2,
        load_in_4bit=True,
    )
    real = add_lora(load_model(arguments), arguments).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        real(torch.arange(4)[None])
    planned = meta_model(biased, dataclasses.replace(SETTINGS, dtype=dtype, bf16=bf16))
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise_parameters(planned)
    for ours, theirs in zip(storage(planned), storage(real), strict=True):
        assert ours == theirs


def test_bytes_of_a_model(config):
    """Half a byte a weight, one of 64 and four of 64 * 256; adapters and their moments float32."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    shapes = [(hidden, hidden), (hidden // 2, hidden), (hidden // 2, hidden), (hidden, hidden)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    whole = 2 * vocab * hidden + (2 * config.num_hidden_layers + 1) * hidden
    packed = sum(n * k // 2 + n * k // 64 + 4 * -(-n * k // 64 // 256) for n, k in shapes)
    codes = len(shapes) * (16 + 256 + 1) * 4
    adapters = config.num_hidden_layers * 4 * sum(2 * (n + k) for n, k in shapes)
    settings = dataclasses.replace(SETTINGS, gpu="cpu", dtype="float32")
    forward = plan("tiny", config, settings).phases["forward"]
    expected = 4 * whole + config.num_hidden_layers * (packed + codes) + adapters
    assert 0 <= forward.parts[WEIGHTS] - expected < 512  # RoPE's frequencies
    assert forward.parts[GRADIENTS] == adapters
    assert 0 <= forward.parts[OPTIMIZER] - 2 * adapters < 512


def test_one_matrix_at_a_time_is_written_out(config):
    """Beside LoRA on whole weights no FLOPs, nothing saved, and a single matrix in bf16."""
    config.num_hidden_layers = 1
    config.intermediate_size = 8192
    settings = dataclasses.replace(SETTINGS, length=2, activation_checkpointing=False)
    four, whole = (
        plan("tiny", config, dataclasses.replace(settings, load_in_4bit=each))
        for each in (True, False)
    )
    assert four.flops == whole.flops
    extra = four.phases["backward"].parts[TEMPORARY] - whole.phases["backward"].parts[TEMPORARY]
    matrix = 2 * 64 * 8192
    assert matrix / 2 < extra < 1.1 * matrix
    assert four.phases["backward"].parts[WEIGHTS] < whole.phases["backward"].parts[WEIGHTS] / 2


def test_extrapolation_is_exact(biased):
    biased.num_hidden_layers = 5
    biased.layer_types = 5 * biased.layer_types[:1]
    settings = dataclasses.replace(SETTINGS, tile_tokens=16, offload_activations=True)
    full = Plan("tiny", settings, *trace(biased, settings))
    found = extrapolated(biased, settings)
    assert (found.flops, found.usages) == (full.flops, full.usages)


def test_biases_and_tiles_as_the_allocator_records_them(biased):
    settings = dataclasses.replace(settings_of("QLoRA", 160, "cpu"), tile_tokens=48)
    assert abs(compare("tiny", biased, settings).error) < 0.05


def test_no_fake_is_left_behind(config):
    plan("tiny", config, SETTINGS)
    _, state = bitsandbytes.functional.quantize_4bit(torch.ones(4, 64), compress_statistics=True)
    tables = [state.code, state.state2.code, *bitsandbytes.functional.name2qmap.values()]
    assert not any(isinstance(table, FakeTensor) for table in tables)


def test_bitsandbytes_is_asked_for(config, monkeypatch):
    monkeypatch.setattr(four_bits, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=r"load_in_4bit is True, but bitsandbytes \S+ or newer"):
        plan("tiny", config, SETTINGS)
