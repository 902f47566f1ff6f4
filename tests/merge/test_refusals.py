"""What cannot be merged is refused in one sentence, and nothing is left behind."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrk.merge import Linear, Slerp, TaskArithmetic, main, merge, stream

WEIGHTS = "model.safetensors"
NAME = "model.norm.weight"


def remove_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[NAME]
    save_file(tensors, folder / WEIGHTS)


def transpose_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].T.contiguous()}, folder / WEIGHTS)


def quantise_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {NAME: tensors[NAME].to(torch.int8)}, folder / WEIGHTS)


def cut_off(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 8)


def cut_off_in_the_header(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 100)


def name_a_missing_shard(folder: Path) -> None:
    index = {"weight_map": {NAME: "model-00001-of-00002.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def name_a_missing_tensor(folder: Path) -> None:
    index = {"weight_map": {NAME: WEIGHTS, "model.extra.weight": WEIGHTS}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def break_the_index(folder: Path) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text("{")


def remove_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lama"}')


DAMAGES = {
    remove_tensor: f"b has no tensor {NAME}, which .*a has",
    transpose_tensor: r"up_proj.weight has shape \(40, 32\) in .*a and \(32, 40\) in .*b",
    quantise_tensor: f"{NAME} has dtype I8; only BF16, F16, F32, F64 can be merged",
    cut_off: "its header says otherwise: it is cut off",
    cut_off_in_the_header: "is cut off or no safetensors file",
    name_a_missing_shard: "b has no model-00001-of-00002.safetensors, which its .* names",
    name_a_missing_tensor: "b has no tensor model.extra.weight, which its .* names",
    break_the_index: "index.json is no JSON file",
    remove_weights: "b has neither model.safetensors nor model.safetensors.index.json",
    break_config: "config.json could not be read: ",
    shutil.rmtree: "b is no folder with a config.json; it must hold a whole model",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model(save_model, tmp_path, damage):
    models = [save_model("a", 0), save_model("b", 1)]
    damage(models[1])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=DAMAGES[damage]) as error:
        merge(models, tmp_path / "merged", Linear())
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"vocab_size": 50}, "vocab_size is 48 in .*a and 50 in .*b; models that are merged must"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 2 in .*a and 3 in .*b"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is False in .*a and True in .*b"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-06 in .*a and 1e-05 in .*b"),
        ({"max_position_embeddings": 96}, "max_position_embeddings is 64 .* with config_from"),
        ({"words": {f"w{i}": 47 - i for i in range(48)}}, "token 'w0' is 0 in the vocabulary of"),
        ({"words": {f"w{i}": i for i in range(47)}}, "token 'w47' is 47 in .*a and absent in that"),
    ],
)
def test_models_that_differ(save_model, tmp_path, difference, message):
    models = [save_model("a", 0), save_model("b", 1, **difference)]
    with pytest.raises(ValueError, match=message):
        merge(models, tmp_path / "merged", Linear())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_vocabularies_are_compared_only_where_both_are_there(save_model, tmp_path):
    models = [save_model("a", 0), save_model("b", 1, words=None)]
    merge(models, tmp_path / "merged", Linear())


@pytest.mark.parametrize(
    ("count", "rule", "message"),
    [
        (2, Linear((0.5, 0.25)), "weights are 0.5 0.25; they must add up to 1"),
        (2, Linear((1.0,)), "weights are 1.0; there must be 2 finite ones"),
        (2, Linear((float("nan"), 1.0)), "weights are nan 1.0; there must be 2 finite ones"),
        (1, Linear(), "there are too few models, 1; merging needs 2"),
        (3, Slerp(), "there are 3 models; slerp merges 2"),
        (2, Slerp(1.5), "t is 1.5; it must be between 0 and 1"),
        (1, TaskArithmetic(), "there are too few models, 1; merging needs 2"),
        (2, TaskArithmetic((1.0, 1.0)), "weights are 1.0 1.0; there must be 1 finite ones"),
    ],
)
def test_rules_that_do_not_fit(tmp_path, count, rule, message):
    with pytest.raises(ValueError, match=message):
        merge([tmp_path / str(i) for i in range(count)], tmp_path / "merged", rule)


def test_output_and_config_from(save_model, tmp_path):
    models = [save_model("a", 0), save_model("b", 1)]
    with pytest.raises(ValueError, match=r"output_dir is .*a, which exists; it must be new or"):
        merge(models, models[0], Linear())
    with pytest.raises(ValueError, match="config_from is c; it must be one of the models"):
        merge(models, tmp_path / "merged", Linear(), config_from="c")


def test_a_full_disk_is_noticed_before_anything_is_written(save_model, tmp_path, monkeypatch):
    models = [save_model("a", 0), save_model("b", 1)]
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"where 0\.0 GiB are free; the merged model has"):
        merge(models, tmp_path / "new" / "merged", Linear())
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_nothing(save_model, tmp_path, monkeypatch, capsys):
    models = [save_model("a", 0), save_model("b", 1)]

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(stream, "write_blocks", fail)
    words = ["linear", *map(str, models), "--output_dir", str(tmp_path / "merged")]
    capsys.readouterr()
    assert main(words) == 1
    assert capsys.readouterr().err == (
        f"lrk-merge: {str(tmp_path / 'merged')!r} could not be saved (No space left on device); "
        "everything saved before is intact\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_a_killed_merge_left_is_replaced(save_model, tmp_path):
    models = [save_model("a", 0), save_model("b", 1)]
    left = tmp_path / ".partial-merged"
    left.mkdir()
    (left / "rubbish").touch()
    folder = merge(models, tmp_path / "merged", Linear())
    assert not left.exists()
    assert not (folder / "rubbish").exists()


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    words = ["slerp", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main([*words, "--output_dir", str(tmp_path / "merged")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("lrk-merge: ")
    assert line.count("\n") == 1
