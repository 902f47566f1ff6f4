"""Bad input gets one sentence that names what is wrong and what is allowed, before work starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import lrk
from lrk.kernels.attention import attention
from lrk.kernels.cross_entropy import linear_cross_entropy
from lrk.kernels.rope import rope
from lrk.positions import longrecipe
from lrk.recipe import load_documents
from lrk.train.command import main
from lrk.train.manifest import write_manifest
from studies.tiny import prose, write_model

Q, K = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
POSITIONS = torch.arange(6)[None]
FREQUENCIES = 1e4 ** (-torch.arange(0, 8, 2).double() / 8)
HIDDEN, WEIGHT = torch.randn(4, 8), torch.randn(11, 8)
LABELS = torch.arange(4)


def boundaries(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


OPERATIONS = [
    (lambda: rope(Q, K, POSITIONS.float(), FREQUENCIES), "position_ids must be int32 or int64"),
    (lambda: rope(Q, K, POSITIONS - 3, FREQUENCIES), "position_ids must be from 0 to 2.38, got -3"),
    (lambda: rope(Q, K, POSITIONS[:, :5], FREQUENCIES), r"position_ids must have shape .*\(1, 5\)"),
    (lambda: rope(Q, K.double(), POSITIONS, FREQUENCIES), "k must have the dtype of q"),
    (lambda: attention(Q, K[:, [0, 1, 1]], K[:, [0, 1, 1]]), "k has 3 heads: must divide q's 4"),
    (lambda: attention(Q, K, K, window=0), "window is 0, .*must be at least 1"),
    (
        lambda: attention(Q, K, K, cu_seqlens=boundaries(0, 3, 5)),
        r"cu_seqlens runs from 0 to 5: must rise from 0 to batch \* length = 6",
    ),
    (
        lambda: attention(Q, K, K, cu_seqlens=boundaries(0, 4, 2, 6)),
        "cu_seqlens falls from 4 to 2: must never fall",
    ),
    (
        lambda: attention(Q, K, K, window=2.5),
        r"window is 2\.5, of type float: must be an integer",
    ),
    (lambda: attention(Q, K, K, softcap=0.0), "softcap is 0.0: must be from 1e-15 to"),
    (lambda: linear_cross_entropy(HIDDEN, WEIGHT, LABELS[:3]), "labels must have .* got"),
    (lambda: linear_cross_entropy(HIDDEN, WEIGHT, LABELS + 9), r"labels\[2\] is 11"),
    (lambda: linear_cross_entropy(HIDDEN, WEIGHT, LABELS.float()), "labels must be torch.int64"),
    (lambda: longrecipe([3, 0, 2], 100), "segment_lengths is .*positive"),
    (lambda: longrecipe([30, 30], 50), "target_length is 50; it must be at least the 60 tokens"),
    (lambda: load_documents("a.txt"), "sources is the string 'a.txt'; it must be a list"),
    (
        lambda: lrk.patch(GPT2LMHeadModel(GPT2Config(n_layer=0, n_embd=12))),
        "supported are gemma2, ",
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data and runs of which each lacks something."""
    world = tmp_path_factory.mktemp("world")
    write_model(world / "model")
    (world / "good.txt").write_text(prose(60, 0))
    _write_models(world)
    _write_data(world)
    _write_runs(world)
    return world


def _write_models(world: Path) -> None:
    def copy(name: str, **config: Any) -> Path:
        shutil.copytree(world / "model", world / name)
        path = world / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return world / name

    GPT2Config().save_pretrained(world / "gpt2")
    copy("small", vocab_size=300)
    copy("wide", hidden_size=64)
    copy("proportional", rope_parameters={"rope_type": "proportional", "rope_theta": 1e4})
    cut = copy("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:5000])
    copy("remote", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    (world / "remote" / "own.py").write_text("raise RuntimeError('remote code was run')\n")
    (world / "adapter").mkdir()
    (world / "adapter" / "adapter_config.json").write_text("{}")
    copy("endless")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(world / "endless")


def _write_data(world: Path) -> None:
    row = json.dumps({"text": prose(9, 0)})
    (world / "empty.txt").write_text("")
    (world / "short.txt").write_text("Too short.")
    (world / "latin.txt").write_bytes(b"caf\xe9")
    (world / "torn.jsonl").write_text(f"{row}\n{row}\n{row[:40]}")
    (world / "list.jsonl").write_text(f"{row}\n[1, 2]\n")
    (world / "number.jsonl").write_text('{"text": 1}\n')
    (world / "body.jsonl").write_text('{"body": "x"}\n')
    (world / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    datasets.Dataset.from_dict({"text": [prose(9, 0)] * 9}).to_parquet(world / "cut.parquet")
    cut = world / "cut.parquet"
    cut.write_bytes(cut.read_bytes()[:200])


def _write_runs(world: Path) -> None:
    for name in ("other", "torn", "run"):
        (world / name).mkdir()
        (world / name / "config.yaml").write_text("")
    (world / "torn" / "checkpoint-1").mkdir()
    checkpoint = world / "run" / "checkpoint-1"
    checkpoint.mkdir()
    run = {"lora_rank": 0, "weights": "0123456789abcdef", "data": "0123456789abcdef"}
    write_manifest(checkpoint, run)


COMMANDS = [
    ({"learnig_rate": 1}, "unknown key '--learnig_rate'; did you mean '--learning_rate'"),
    ({"learning_rate": "fast"}, "argument --learning_rate: invalid float value: 'fast'"),
    ({"learning_rate": -1}, "learning_rate is -1.0; it must be 0 or positive"),
    ({"target_length": 16}, "target_length is 16, shorter than train_length 32"),
    ({"target_length": 1.5}, "argument --target_length: invalid int value: '1.5'"),
    ({"position_method": "posse"}, "position_method 'posse' is unknown"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
    ({"max_steps": 0, "num_train_epochs": 0}, "one of them must be positive"),
    ({"eval_strategy": "steps", "eval_steps": 1}, "eval_data is empty"),
    ({"kernels.attention": "false"}, "kernels.attention is false"),
    ({"data": "{}/absent.jsonl"}, "absent.jsonl' does not exist"),
    ({"data": None}, "data is empty"),
    ({"data": "{}/empty.txt"}, "none of the 1 documents holds text"),
    ({"data": "{}/short.txt"}, "but one sample of train_length needs 32"),
    ({"data": "{}/short.txt", "pack": "false"}, "needs train_length 32"),
    ({"data": "{}/latin.txt"}, "latin.txt' cannot be read: "),
    ({"data": "{}/torn.jsonl"}, "line 3 of data file '{}/torn.jsonl' is not JSON"),
    ({"data": "{}/list.jsonl"}, "line 2 of data file '{}/list.jsonl' is list, not an object"),
    ({"data": "{}/cut.parquet"}, "data file '{}/cut.parquet' cannot be read"),
    ({"data": "{}/number.jsonl"}, "holds int, not text"),
    ({"data": "{}/body.jsonl"}, "no column 'text'; text_column must be one of body"),
    ({"data": "{}/chat.jsonl"}, "the tokenizer has no chat template"),
    ({"output_dir": "{}/other"}, "holds another run (config.yaml)"),
    ({"output_dir": "{}/good.txt"}, "is a file"),
    ({"output_dir": None}, "output_dir is missing"),
    ({"resume_from_checkpoint": "true"}, "holds no run to resume"),
    (
        {"output_dir": "{}/torn", "resume_from_checkpoint": "{}/torn/checkpoint-1"},
        "is not a whole checkpoint: it has no manifest.json",
    ),
    (
        {"output_dir": "{}/run", "resume_from_checkpoint": "{}/run/checkpoint-1"},
        "is of a run on other weights than those of '{}/model' now (fingerprint 01234567, now ",
    ),
    (
        {"output_dir": "{}/run", "resume_from_checkpoint": "{}/run/checkpoint-1", "lora_rank": 4},
        "is of a run with lora_rank 0, which is 4 now",
    ),
    ({"model_name_or_path": None}, "model_name_or_path is missing"),
    ({"model_name_or_path": "{}/nowhere"}, "nowhere' does not exist"),
    ({"model_name_or_path": "{}/other"}, "cannot be loaded"),
    ({"model_name_or_path": "{}/adapter"}, "is an adapter; merge it into its base model first"),
    ({"model_name_or_path": "{}/gpt2"}, "model type 'gpt2'; supported are gemma2, gemma3_text"),
    ({"model_name_or_path": "{}/remote"}, "contains custom code which must be executed"),
    ({"model_name_or_path": "{}/proportional"}, "rope_type is 'proportional'; it must be one of"),
    ({"model_name_or_path": "{}/small"}, "but the model's vocabulary ends at 299"),
    ({"model_name_or_path": "{}/wide"}, "wide' cannot be loaded: "),
    ({"model_name_or_path": "{}/cut"}, "cut' cannot be loaded: "),
    ({"model_name_or_path": "{}/endless"}, "ends a sentence or a line"),
]


@pytest.mark.parametrize(
    ("case", "message"), OPERATIONS, ids=[message for _, message in OPERATIONS]
)
def test_operations_and_functions(case, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        case()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), COMMANDS, ids=[str(case) for case, _ in COMMANDS])
def test_the_command(world, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    options = {
        "model_name_or_path": "{}/model",
        "data": "{}/good.txt",
        "output_dir": str(tmp_path / "new"),
        "target_length": 256,
        "train_length": 32,
        "max_steps": 1,
        "bf16": "false",
    }
    words = [f"--{k}={v}" for k, v in (options | changes).items() if v is not None]
    assert main([word.replace("{}", str(world)) for word in words]) == 2
    error = capsys.readouterr().err
    sentence = error.splitlines()[-1]
    assert sentence.startswith("lrk-train: ")
    assert message.replace("{}", str(world)) in sentence
    assert error.count("lrk-train: ") == 1
    assert not (tmp_path / "new").exists()
