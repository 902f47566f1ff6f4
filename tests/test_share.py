"""Who of n jobs does what."""

import itertools
import multiprocessing
import time
from contextlib import ExitStack, contextmanager

import pytest

from lrk.lock import locked
from lrk.share import Share, at_work, local_share, process_share


@pytest.mark.parametrize(
    "text", ["1", "1/1", "3/2", "x", "a/b", "-1/2", "1/0", "", "1/2/3", "0.5/2"]
)
def test_shares_that_are_none(text):
    with pytest.raises(ValueError, match="; it must read i/n with i from 0 to n - 1"):
        Share.parse(text)


def test_a_share_is_written_as_it_is_read():
    assert Share.parse("3/8") == Share(3, 8)
    assert str(Share(3, 8)) == "3/8"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_every_part_has_one_job_and_the_longest_is_not_long(count):
    costs = [8.0, 1, 1, 5, 5, 0, 0, 0, 3, 2, 8, 1, 1, 1]
    parts = [Share(index, count).of_costs(costs) for index in range(count)]
    assert sorted(itertools.chain(*parts)) == list(range(len(costs)))
    for numbers in parts:
        assert [costs[number] for number in numbers] == sorted(
            (costs[number] for number in numbers), reverse=True
        ), "the dearest first"
    longest = max(sum(costs[number] for number in numbers) for numbers in parts)
    assert longest <= max(max(costs), 4 / 3 * sum(costs) / count)


def test_parts_of_unknown_cost_are_divided_by_their_number():
    assert [len(Share(index, 4).of_costs([0.0] * 10)) for index in range(4)] == [3, 3, 2, 2]


def test_processes_divide_a_share():
    parts = [Share(job, 3).divided(Share(rank, 2)) for job in range(3) for rank in range(2)]
    assert parts == [Share(number, 6) for number in range(6)]


def test_launchers_say_which_process_this_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert process_share() == local_share() == Share()
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process_share() == Share(9, 16)
    assert local_share() == Share(), "a launcher that does not say how many are on the machine"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert local_share() == Share(1, 8)


@contextmanager
def _held_for_long(folder, part=""):
    with locked(folder, part):
        time.sleep(0.05)
        yield


def _start(folder, share, barrier, refused) -> None:
    for _ in range(2):
        barrier.wait(20)
        try:
            with at_work(folder, share):
                barrier.wait(20)
        except ValueError as error:
            refused.put(str(error))
            barrier.abort()


@pytest.mark.parametrize("before", [Share(), Share(1, 4)], ids=str)
def test_shares_that_start_together_do_not_refuse_each_other(tmp_path, before, monkeypatch):
    """Each looks whether the lock that was left is held, while the others do."""
    monkeypatch.setattr("lrk.lock._POLL", 0.01)
    with at_work(tmp_path, before):
        pass
    monkeypatch.setattr("lrk.share.locked", _held_for_long)
    context = multiprocessing.get_context("fork")
    barrier, refused = context.Barrier(3), context.SimpleQueue()
    processes = [
        context.Process(target=_start, args=(tmp_path, Share(index, 3), barrier, refused))
        for index in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert refused.empty(), refused.get()
    assert [process.exitcode for process in processes] == [0, 0, 0]


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        (Share(), Share()),
        (Share(), Share(0, 2)),
        (Share(0, 2), Share()),
        (Share(0, 2), Share(0, 2)),
        (Share(0, 2), Share(1, 3)),
    ],
    ids=str,
)
def test_a_folder_is_shared_in_one_way_at_a_time(tmp_path, held, asked):
    with ExitStack() as stack:
        stack.enter_context(at_work(tmp_path, held))
        for _ in range(2):
            with pytest.raises(ValueError, match="another process is writing to"):
                stack.enter_context(at_work(tmp_path, asked))
    with at_work(tmp_path, asked):
        pass


@pytest.mark.parametrize("asked", [Share(), Share(0, 2)], ids=str)
def test_who_merges_into_a_folder_below_keeps_its_temporaries(tmp_path, asked):
    (tmp_path / ".partial-00000000-merged").mkdir()
    with (
        locked(tmp_path, "merged"),
        pytest.raises(ValueError, match="another process is writing to"),
        at_work(tmp_path, asked),
    ):
        pass
    assert (tmp_path / ".partial-00000000-merged").is_dir()
