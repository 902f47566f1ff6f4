import contextlib
import errno
import itertools
import multiprocessing
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lrk.atomic import (
    SaveError,
    atomic_file,
    atomic_folder,
    files_moved_into,
    remove,
    remove_temporaries,
    write_text,
)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_is_written_replaces_what_was_there(tmp_path):
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "new")
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / text).write_text(text)
    assert contents(tmp_path) == {"a": "new", "folder/new": "new"}


def test_a_full_disk_loses_nothing_and_says_so(tmp_path):
    write_text(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model").write_text("old")
    before = contents(tmp_path)
    message = r"could not be saved \(.*No space left on device\); everything saved before is intact"

    def fail(path: Path) -> None:
        path.write_text("ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SaveError, match=message), atomic_file(tmp_path / "file") as path:
        fail(path)
    for write in (atomic_folder, files_moved_into):
        with pytest.raises(SaveError, match=message), write(tmp_path / "folder") as path:
            fail(path / "model")
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob(".partial-*"))


def in_a_process(function: Callable[[], None]) -> int:
    """Exit code of a fork that calls the function; minus the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "torch"])
def test_a_real_writer_that_finds_no_room(tmp_path, save):
    """A limit on the size of files stands in for the disk; safetensors raises its own error."""

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        message = r"checkpoint' could not be saved \(.+\); everything saved before is intact"
        with (
            pytest.raises(SaveError, match=message),
            atomic_folder(tmp_path / "checkpoint") as folder,
        ):
            save({"x": torch.ones(10_000)}, folder / "x")

    assert in_a_process(write) == 0
    assert list(tmp_path.iterdir()) == []


def test_files_move_in_beside_others_and_the_index_of_a_model_comes_last(tmp_path, monkeypatch):
    index = "model.safetensors.index.json"
    for name in (index, "model-1.safetensors", "notes"):
        (tmp_path / name).write_text("old")
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    with files_moved_into(tmp_path) as folder:
        for name in (index, "model-1.safetensors", "z"):
            (folder / name).write_text("new")
    assert moved == ["model-1.safetensors", "z", index]
    assert contents(tmp_path) == {
        index: "new",
        "model-1.safetensors": "new",
        "notes": "old",
        "z": "new",
    }


@pytest.mark.parametrize("stop", range(4))
def test_a_kill_between_two_steps_leaves_the_old_or_the_new(tmp_path, monkeypatch, stop):
    """The process dies at its n-th rename or deletion, of which there are three."""
    folder = tmp_path / "checkpoint"
    with atomic_folder(folder) as new:
        (new / "x").write_text("old")
    calls = itertools.count()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def write() -> None:
        for owner, name in ((os, "replace"), (shutil, "rmtree"), (Path, "rename")):
            monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
        with atomic_folder(folder) as new:
            (new / "x").write_text("new")

    assert in_a_process(write) == (-signal.SIGKILL if stop < 3 else 0)
    # Between the two renames there is neither; older checkpoints are whole.
    assert contents(tmp_path).get("checkpoint/x") == {0: "old", 1: None}.get(stop, "new")
    remove_temporaries(tmp_path)
    assert not list(tmp_path.glob(".partial-*"))


def test_a_folder_that_is_removed_is_never_seen_in_part(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path: seen.append(Path(path).name))
    remove(tmp_path / "checkpoint-1")
    assert re.fullmatch(r"\.partial-\w+-checkpoint-1", *seen)
    assert not (tmp_path / "checkpoint-1").exists()


def test_an_interruption_leaves_nothing(tmp_path):
    for write in (atomic_file, atomic_folder):
        with contextlib.suppress(KeyboardInterrupt), write(tmp_path / "a") as temporary:
            (temporary / "part" if temporary.is_dir() else temporary).touch()
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_is_left_of_one_name_is_removed_alone(tmp_path):
    for name in (".partial-0123abcd-merged", ".partial-4567abcd-a-merged"):
        (tmp_path / name).mkdir()
    remove_temporaries(tmp_path, "merged")
    assert [path.name for path in tmp_path.iterdir()] == [".partial-4567abcd-a-merged"]
    remove_temporaries(tmp_path)
    assert not list(tmp_path.iterdir())
