"""`python -m lrk.env`."""

import json
from pathlib import Path

import pytest
import torch

from lrk import env


def test_the_block_names_versions_and_every_operation(capsys):
    assert env.main() == 0
    text = capsys.readouterr().out
    for word in ("torch", "transformers", torch.__version__, "processor", "commit", "0 wrong"):
        assert word in text
    for operation in ("rope", "attention", "linear_cross_entropy"):
        assert f"{operation}, CPU, float32" in text
        assert f"{operation}, Triton" in text
    assert "error nan" not in text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda q, k, *_: (q * 1.0001, k), "wrong: output: error"),
        (lambda q, k, *_: 1 / 0, "wrong: ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_operation_is_reported(capsys, monkeypatch, fault, words):
    monkeypatch.setattr(env, "interpreting", lambda: False)
    monkeypatch.setattr(env, "rope", fault)
    assert env.main() == 1
    text = capsys.readouterr().out
    assert words in text
    assert "1 wrong" in text


def test_the_record_is_json_without_secrets():
    command = [
        "/home/me/bin/lrk-train",
        "a.yaml",
        "--hub_token=hf_x",
        "--hub-token",
        "hf_x",
        "--tf32",
    ]
    record = env.environment(command)
    assert record["command"] == [
        "lrk-train",
        "a.yaml",
        "--hub_token=(hidden)",
        "--hub-token",
        "(hidden)",
        "--tf32",
    ]
    assert "hf_x" not in json.dumps(record)


def test_the_commit_is_that_of_lrk_and_nothing_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "__file__", str(tmp_path / "env.py"))
    assert env._commit() is None
    assert Path(env.__file__).parent == tmp_path


def test_generation_of_every_model_type_is_compared(capsys, monkeypatch):
    monkeypatch.setattr(env, "self_test", lambda: iter(()))

    def fault(model_type, device):
        if model_type == "qwen2":
            raise ValueError("takes kv")
        return "patched: logits differ" if model_type == "mistral" else None

    monkeypatch.setattr(env, "model_fault", fault)
    assert env.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert "model, llama, cpu" in "\n".join(lines)
    assert any(line.endswith("wrong: patched: logits differ") for line in lines)
    assert any(line.endswith("wrong: ValueError: takes kv") for line in lines)
    assert lines[-1].startswith("2 wrong")


def test_versions_outside_of_the_tested_range_are_marked(capsys, monkeypatch):
    monkeypatch.setattr(env, "self_test", lambda: iter(()))
    monkeypatch.setattr(env, "model_fault", lambda kind, device: None)
    outside = {"torch": "<2.15,>=2.11", "matplotlib": "<3,>=2"}
    monkeypatch.setattr(env, "outside_tested_ranges", lambda: outside)
    assert env.main() == 0
    text = capsys.readouterr().out
    assert f"{torch.__version__}  not tested: lrk was with <2.15,>=2.11" in text
    assert "not tested: lrk was with <3,>=2" in text
