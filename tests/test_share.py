"""Who of n jobs does what."""

import itertools

import pytest

from lrk.share import Share, local_share, process_share


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
