"""Whose results a folder holds."""

import pytest

from lrk.settings_folder import SettingsFolder


def test_a_folder_is_gone_on_with_by_the_same_settings_alone(tmp_path):
    folder = SettingsFolder(tmp_path, ("result.json", "rows"), "a search")
    folder.begin({"seed": 1, "name": "a"})
    folder.begin({"seed": 1, "name": "a"})
    folder.check({"seed": 1})  # as many as are known
    with pytest.raises(ValueError, match=r"a search with other settings \(seed was 1 and is 2"):
        folder.begin({"seed": 2, "name": "a"})
    (tmp_path / "rows").mkdir()
    (tmp_path / "others.txt").write_text("stays")
    folder.clear(overwrite=False)
    assert (tmp_path / "rows").exists()
    folder.clear(overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["others.txt"]
    folder.begin({"seed": 2, "name": "a"})


def test_results_of_nobody_knows_what_are_left_alone(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    folder = SettingsFolder(tmp_path, ("result.json",), "a search")
    with pytest.raises(ValueError, match=r"result\.json without settings\.json, which says of"):
        folder.begin({"seed": 1})
    assert (tmp_path / "result.json").read_text() == "{}"
