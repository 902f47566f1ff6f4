"""What cannot be written is said before any work starts, and nothing is left of having tried."""

import errno
import os
import re
from pathlib import Path

import pytest

from lrk.output_folder import check_output_dir, check_output_file


def test_folders_that_are_or_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    for path in ("there", "link", "new", "new/and/deep", ".", tmp_path / "new"):
        check_output_dir(path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "there"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("file", "output_dir '{}/file' is a file; it must be a folder"),
        ("file/a/b", "output_dir '{}/file/a/b' lies in '{}/file', which is a file; it must be a"),
        ("dangling", "output_dir '{}/dangling' is a link to '{}/nowhere', which is not there"),
        ("x" * 300, "cannot be written to: File name too long"),
    ],
)
def test_folders_that_cannot_be(tmp_path, path, sentence):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=re.escape(sentence.replace("{}", str(tmp_path)))):
        check_output_dir(tmp_path / path)


def test_a_file_system_that_takes_no_files():
    """Rights do not bind the administrator; a file system does."""
    with pytest.raises(ValueError, match="output_dir '/proc/new' cannot be written to: "):
        check_output_dir("/proc/new")


def test_rights_that_are_missing(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match="new' cannot be written to: Permission denied"):
        check_output_dir(tmp_path / "new")


def test_files(tmp_path):
    check_output_file(tmp_path / "plan.json", "json")
    with pytest.raises(ValueError, match=r"json '.*' is a folder; it must be a file"):
        check_output_file(tmp_path, "json")
    with pytest.raises(ValueError, match=r"plot '.*a/b.png' lies in no folder that is there"):
        check_output_file(tmp_path / "a" / "b.png", "plot")
    with pytest.raises(ValueError, match=r"the folder of json '/proc' cannot be written to"):
        check_output_file(Path("/proc/plan.json"), "json")
    assert not list(tmp_path.iterdir())
