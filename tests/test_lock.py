"""Two processes and one folder."""

import errno
import multiprocessing
import signal
import time

import pytest

from lrk.lock import locked


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
