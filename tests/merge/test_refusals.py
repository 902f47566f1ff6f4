"""What cannot be merged is refused in one sentence, and nothing is left behind."""

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrk.lock import locked
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


def lead_the_index_out(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder.parent / "victim.safetensors")
    names = load_file(folder / WEIGHTS)
    index = {"weight_map": dict.fromkeys(names, "../victim.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def link_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "victim.safetensors")
    (folder / WEIGHTS).symlink_to(folder.parent / "victim.safetensors")


def link_a_secret(folder: Path) -> None:
    (folder.parent / "secret").write_text("key")
    (folder / "tokenizer_notes.txt").symlink_to("../secret")


def name_a_tensor_twice(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    weight_map = dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS) | {NAME: "other.safetensors"}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def rewrite_header(folder: Path, change: Callable[[dict], None]) -> None:
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def overlap(folder: Path) -> None:
    def change(header: dict) -> None:
        names = sorted(header.keys() - {"__metadata__"}, key=lambda n: header[n]["data_offsets"])
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
        header[names[1]]["shape"] = header[names[0]]["shape"]

    rewrite_header(folder, change)


def negative_offsets(folder: Path) -> None:
    rewrite_header(folder, lambda header: header[NAME].update(data_offsets=[-128, 0]))


def words_for_a_shape(folder: Path) -> None:
    rewrite_header(folder, lambda header: header[NAME].update(shape=["32"]))


def no_entry(folder: Path) -> None:
    rewrite_header(folder, lambda header: header.update({NAME: None}))


def a_header_without_end(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((2**63).to_bytes(8, "little") + content[8:])


def a_tokenizer_of_lists(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")


def a_tokenizer_without_tokens(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"vocab": 3}, "added_tokens": []}')


def ids_that_are_lists(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["w3"] = [3]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def a_config_of_words(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "many"}))


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[NAME][3] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def remove_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lama"}')


DAMAGES = {
    remove_tensor: f"b has no tensor {NAME}, which .*a has",
    transpose_tensor: r"up_proj.weight has shape \(40, 32\) in .*a and \(32, 40\) in .*b",
    quantise_tensor: f"'{NAME}' has dtype 'I8'; only BF16, F16, F32, F64 can be merged",
    cut_off: "its header says otherwise: it is cut off",
    cut_off_in_the_header: "is cut off or no safetensors file",
    name_a_missing_shard: "b has no model-00001-of-00002.safetensors, which its .* names",
    name_a_missing_tensor: "b has no tensor 'model.extra.weight', which its .* names",
    break_the_index: "b/model.safetensors.index.json is no index of safetensors files",
    lead_the_index_out: "index.json names '../victim.safetensors', which is no name of a file in",
    link_out: "b/model.safetensors is a link to .*victim.safetensors, out of the folder",
    link_a_secret: "b/tokenizer_notes.txt is a link to .*secret, out of the folder",
    name_a_tensor_twice: "which by its model.safetensors.index.json lies in",
    overlap: "b/model.safetensors: .* tensors must neither overlap nor leave gaps",
    negative_offsets: f"b/model.safetensors: '{NAME}' is .*-128, 0.*, which describes no tensor",
    words_for_a_shape: f"b/model.safetensors: '{NAME}' is .*'32'.*, which describes no tensor",
    no_entry: f"b/model.safetensors: '{NAME}' is None, which describes no tensor",
    a_header_without_end: "b/model.safetensors is cut off or no safetensors file",
    a_tokenizer_of_lists: "b/tokenizer.json is no tokenizer",
    a_tokenizer_without_tokens: "b/tokenizer.json is no tokenizer",
    ids_that_are_lists: "b/tokenizer.json is no tokenizer",
    a_config_of_words: "config.json of '.*b' cannot be loaded: ",
    remove_weights: "b has neither model.safetensors nor model.safetensors.index.json",
    break_config: "config.json of '.*b' cannot be loaded: ",
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
        (
            {"original_max_position_embeddings": 32},
            "original_max_position_embeddings is None .* with config_from",
        ),
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


def test_a_sum_that_is_not_finite_leaves_nothing(save_model, tmp_path):
    models = [save_model("a", 0), save_model("b", 1)]
    not_finite(models[1])
    with pytest.raises(ValueError, match=f"{NAME} of the merged model has values that are not fin"):
        merge(models, tmp_path / "merged", Linear())
    assert {path.name for path in tmp_path.iterdir()} - {".lock-merged"} == {"a", "b"}


def test_the_cache_of_the_hub_is_read_through_its_links(save_model, tmp_path):
    model = save_model("a", 0)
    snapshot = tmp_path / "models--a" / "snapshots" / "1f3e"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a" / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(tmp_path / "models--a" / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    folder = merge([snapshot, save_model("b", 1)], tmp_path / "merged", Linear())
    assert not any(file.is_symlink() for file in folder.iterdir())


def test_what_a_config_notes_of_its_origin_is_not_compared(save_model, tmp_path):
    """Loading a GGUF file writes `_model_name_or_path`."""
    models = [save_model("a", 0), save_model("b", 1)]
    config = json.loads((models[1] / "config.json").read_text())
    config |= {"_model_name_or_path": "b.gguf", "_flash_attn_2_enabled": False}
    (models[1] / "config.json").write_text(json.dumps(config))
    merge(models, tmp_path / "merged", Linear())


def test_two_merges_into_one_folder(save_model, tmp_path):
    models = [save_model("a", 0), save_model("b", 1)]
    with (
        locked(tmp_path, "merged"),
        pytest.raises(ValueError, match="another process is writing to"),
    ):
        merge(models, tmp_path / "merged", Linear())
    assert not (tmp_path / "merged").exists()
    with locked(tmp_path, "other"):
        merge(models, tmp_path / "merged", Linear())


@pytest.mark.parametrize("weights", ["0.5", ["0.5", "0.5"], [True, False], 0.5])
def test_weights_of_another_type(weights):
    for rule in (Linear, TaskArithmetic):
        with pytest.raises(ValueError, match=r"weights is .*; it must be list.float. or None"):
            rule(weights)


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
    assert {path.name for path in tmp_path.iterdir()} - {".lock-merged"} == {"a", "b"}


def test_what_a_killed_merge_left_is_replaced(save_model, tmp_path):
    models = [save_model("a", 0), save_model("b", 1)]
    left = tmp_path / ".partial-0123abcd-merged"
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
