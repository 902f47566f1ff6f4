"""Two processes and one folder."""

import errno
import multiprocessing
import signal
import threading
import time

import pytest

from lrk.lock import in_turn, locked


def _hold(folder, connection) -> None:
    with locked(folder):
        # As a data loader's worker, which notices the death of its parent seconds later.
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,)).start()
        connection.send("held")
        connection.recv()


@pytest.fixture
def holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path, its))
    process.start()
    assert ours.recv() == "held"
    yield process
    process.kill()
    process.join()


def test_a_folder_is_one_process_s_until_it_ends(tmp_path, holder):
    with pytest.raises(ValueError, match="another process is writing to"), locked(tmp_path):
        pass
    with locked(tmp_path, "1-of-2"):
        pass
    holder.kill()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("FileSystem does not appear to support flock"),
        OSError(errno.ENOLCK, "No locks available"),
    ],
)
def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    tmp_path, monkeypatch, caplog, error
):
    def acquire(self, timeout):
        raise error

    monkeypatch.setattr("lrk.lock.FileLock.acquire", acquire)
    with locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert "has no locks" in caplog.text


def _counted(folder) -> None:
    for _ in range(20):
        with in_turn(folder / "shared", "counting"):
            count = int((folder / "count").read_text())
            time.sleep(0.001)
            (folder / "count").write_text(str(count + 1))


def test_processes_in_turn_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("lrk.lock._POLL", 0.002)
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_counted, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "60"


def test_who_waits_says_so_and_goes_on_after_a_kill(tmp_path, holder, caplog):
    caplog.set_level("INFO", "lrk.lock")
    threading.Timer(0.5, holder.kill).start()
    with in_turn(tmp_path, "reading the data"):
        holder.join()
        assert holder.exitcode == -signal.SIGKILL, "not before"
    assert "another process is reading the data: this one waits for it" in caplog.text
