"""`load_in_4bit`: adapters trained on weights of 4 bits, and the whole model that they leave."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lrk.positions import scaled_rope_theta
from lrk.train import train
from lrk.train.arguments import lora
from lrk.train.pretrained import load_model
from lrk.train.session import save, set_up

bitsandbytes = pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")

QLORA = {"load_in_4bit": True, "lora_rank": 4, "lora_dropout": 0.1}


def test_a_run_leaves_a_stock_model(arguments, corpus):
    """Its loss is that of the model in 4 bits with its adapter."""
    made = arguments(
        **QLORA, gradient_checkpointing=True, max_steps=4, eval_data=[str(corpus / "held_out")]
    )
    trainer = set_up(made)
    layer = trainer.model.base_model.model.model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype == torch.uint8
    assert layer.base_layer.weight.quant_state.nested
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    rotary = trainer.model.base_model.model.model.rotary_emb
    theta = scaled_rope_theta(10_000.0, 64, 256, 8)
    torch.testing.assert_close(rotary.inv_freq, theta ** (-torch.arange(0, 8, 2) / 8))

    trainer = train(made)
    tokens = torch.arange(12)[None]
    folder = Path(made.output_dir)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["rope_parameters"]["rope_theta"] == theta
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert type(saved.model.layers[0].mlp.up_proj) is torch.nn.Linear
    torch.testing.assert_close(saved(tokens).logits, trainer.model(tokens).logits)

    made = arguments(**QLORA, output_dir=made.output_dir + "-again", rope_theta=theta)
    base = set_up(made).model.unload()
    untrained = base(tokens).logits
    trained = PeftModel.from_pretrained(base, folder / "adapter")
    torch.testing.assert_close(trained(tokens).logits, saved(tokens).logits, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(untrained, saved(tokens).logits, rtol=1e-2)


@pytest.mark.parametrize(
    ("stored", "options", "products"),
    [
        ("bfloat16", {"dtype": "auto"}, torch.bfloat16),
        ("float32", {"dtype": "auto"}, torch.float32),
        ("float32", {"bf16": True}, torch.bfloat16),
        ("float32", {"dtype": "float16"}, torch.float16),
    ],
)
def test_matrices_are_multiplied_as_they_were_stored(
    arguments, model_folder, tmp_path, stored, options, products
):
    shutil.copytree(model_folder, tmp_path / "stored")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=stored)
    model.save_pretrained(tmp_path / "stored")
    changes = {"output_dir": str(tmp_path / "run"), "bf16": False} | options
    made = arguments(**QLORA, model_name_or_path=str(tmp_path / "stored"), **changes)
    layers = [m for m in load_model(made).modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {products}


def test_an_evaluation_leaves_the_layers_as_they_are(arguments, corpus, monkeypatch):
    """Also where the processor has AVX512-BF16, or seems to: bitsandbytes would rewrite them."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    options = QLORA | {"lora_dropout": 0.0, "eval_data": [str(corpus / "held_out")]}
    trainer = set_up(arguments(**options))
    tokens = torch.arange(12)[None]

    def gradients():
        trainer.model.train().zero_grad()
        trainer.model(tokens, labels=tokens).loss.backward()
        return {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}

    before = gradients()
    trainer.evaluate()
    torch.testing.assert_close(gradients(), before, rtol=0, atol=0)


def test_a_resumed_run_ends_with_the_same_weights(arguments, tmp_path):
    options = {**QLORA, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(arguments(**options, output_dir=str(tmp_path / "straight")))
    checkpoint = tmp_path / "straight" / "checkpoint-2"
    shutil.copytree(checkpoint, tmp_path / "resumed" / checkpoint.name)
    shutil.copy(tmp_path / "straight" / "config.yaml", tmp_path / "resumed")
    train(arguments(**options, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint="true"))
    ours, theirs = (
        load_file(tmp_path / name / "model.safetensors") for name in ("resumed", "straight")
    )
    assert [name for name in theirs if not ours[name].equal(theirs[name])] == []


def test_modules_that_are_trained_whole_are_merged(arguments, model_folder):
    made = arguments(**QLORA, max_steps=4, lora_modules_to_save=["embed_tokens", "norm", "lm_head"])
    trainer = set_up(made)
    trainer.train()
    trainer.model.eval()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        trained = trainer.model(tokens).logits
    save(trainer, Path(made.output_dir))
    saved = AutoModelForCausalLM.from_pretrained(made.output_dir)
    torch.testing.assert_close(saved(tokens).logits, trained)
    base = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert not saved.state_dict()[name].equal(base[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 0}, "load_in_4bit is true with lora_rank 0; .* must be positive"),
        ({"gguf_file": "m.gguf"}, "load_in_4bit is true with gguf_file 'm.gguf'"),
    ],
)
def test_what_does_not_go_together(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**QLORA | changes)


def test_bitsandbytes_is_asked_for(arguments, monkeypatch):
    monkeypatch.setattr(lora, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=r"bitsandbytes \S+ or newer is not installed; `pip inst"):
        arguments(**QLORA)
