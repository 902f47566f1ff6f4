"""Copies and files of a patched model: deepcopy, pickle, torch.save, save_pretrained."""

import copy
import io
import json
import pickle
import subprocess
import sys

import pytest
import torch

import lrk

INPUT_IDS = torch.arange(2, 22).view(2, 10)


def classes(model) -> list[type]:
    return [type(module) for module in model.modules()]


def through_pickle(model, protocol=pickle.DEFAULT_PROTOCOL):
    return pickle.loads(pickle.dumps(model, protocol))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.deepcopy, marks=pytest.mark.support("copy.deepcopy"), id="deepcopy"),
        pytest.param(through_pickle, marks=pytest.mark.support("pickle"), id="pickle"),
        pytest.param(
            through_torch_save, marks=pytest.mark.support("torch.save(model)"), id="torch.save"
        ),
    ],
)
def test_copies_are_patched_and_independent(stock, copied):
    before, attention = classes(stock), stock.config._attn_implementation
    other = copied(lrk.patch(stock))
    assert classes(other) == classes(stock)
    assert other.config is other.model.config is not stock.config
    expected = stock(INPUT_IDS, labels=INPUT_IDS)
    output = other(INPUT_IDS, labels=INPUT_IDS)
    assert torch.equal(output.loss, expected.loss)
    output.loss.backward()
    assert classes(lrk.unpatch(other)) == before
    assert classes(stock) != before
    assert other.config._attn_implementation == attention
    assert stock.config._attn_implementation == "lrk"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle(llama, protocol):
    model = lrk.patch(llama)
    assert classes(through_pickle(model, protocol)) == classes(model)


@pytest.mark.support("save_pretrained")
def test_the_stock_class_reads_what_a_patched_model_saves(stock, tmp_path):
    kind, expected = type(stock), stock.eval()(INPUT_IDS).logits
    attention = stock.config._attn_implementation
    lrk.patch(stock).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert json.loads(config)["architectures"] == [kind.__name__]
    assert "lrk" not in config.lower()
    loaded = kind.from_pretrained(tmp_path, attn_implementation=attention)
    assert torch.equal(loaded(INPUT_IDS).logits, expected)


def test_another_process_reads_the_files_of_a_patched_model(llama, tmp_path):
    """The folder without lrk, the pickle without being told of lrk."""
    stock_logits = llama.eval()(INPUT_IDS).logits
    logits = lrk.patch(llama)(INPUT_IDS).logits
    torch.save((llama, logits), tmp_path / "pickle.pt")
    torch.save((INPUT_IDS, stock_logits), tmp_path / "tensors.pt")
    llama.save_pretrained(tmp_path)
    script = (
        "import os, sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "input_ids, stock_logits = torch.load('tensors.pt')\n"
        "model = AutoModelForCausalLM.from_pretrained('.')\n"
        "assert torch.equal(model(input_ids).logits, stock_logits)\n"
        "assert not any(name.split('.')[0] == 'lrk' for name in sys.modules)\n"
        "model, logits = torch.load('pickle.pt', weights_only=False)\n"
        "assert torch.equal(model(input_ids).logits, logits)\n"
        "assert 'lrk' in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_save_pretrained_of_an_attention_asked_for_by_name(llama, tmp_path):
    llama.set_attn_implementation("lrk")
    llama.save_pretrained(tmp_path)
    assert "lrk" not in (tmp_path / "config.json").read_text(encoding="utf-8").lower()
