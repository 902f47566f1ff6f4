"""An index names files of its own folder and nothing else."""

import json

import pytest

from lrk.weight_index import INDEX, read_index


def write(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_the_file_of_each_tensor(tmp_path):
    assert read_index(tmp_path) is None
    (tmp_path / "model-1.safetensors").touch()
    write(tmp_path, {"a": "model-1.safetensors"})
    assert read_index(tmp_path) == {"a": "model-1.safetensors"}


@pytest.mark.parametrize(
    "name", ["../victim", "/etc/passwd", "a/b", "..", ".", "", "a\0b", 3, None]
)
def test_paths_are_refused(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    for file in (tmp_path / "victim", folder / "a" / "b"):
        file.touch()
    write(folder, {"a": name})
    with pytest.raises(ValueError, match=r"names .*, which is no name of a file|model has no \.*,"):
        read_index(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}', "[" * 100_000]
)
def test_what_is_no_index(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match="is no index of safetensors files"):
        read_index(tmp_path)
