"""Two processes: what one of them raises, and what the main one finds."""

from collections.abc import Callable

import pytest
from accelerate import PartialState

from lrk.command import RunError
from lrk.train.collective import done_by_main, raised_by_all
from studies.ranks import run_ranks


def caught(action: Callable[[], object]) -> str:
    try:
        return f"returned {action()}"
    except (ValueError, RunError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def raising(rank: int | None, error: Exception) -> None:
    with raised_by_all():
        if PartialState().process_index == rank:
            raise error


def in_a_rank() -> list[str]:
    rank = PartialState(cpu=True).process_index
    return [
        caught(lambda: raising(None, ValueError())),
        caught(lambda: raising(0, ValueError("data is empty"))),
        caught(lambda: raising(1, OSError("the disk is full"))),
        caught(lambda: done_by_main(lambda: f"of process {rank}")),
        caught(lambda: done_by_main(lambda: raise_(ValueError("output_dir is a file")))),
    ]


def raise_(error: Exception) -> None:
    raise error


@pytest.fixture(scope="module")
def found() -> list[list[str]]:
    return run_ranks(in_a_rank, 2, timeout=60)


def test_an_error_of_one_process_is_raised_by_all(found):
    for rank, (nothing, bad_input, failed, *_) in enumerate(found):
        assert nothing == "returned None"
        assert bad_input == "ValueError: data is empty"
        whose, sentence = failed.split(": ", 1)
        assert whose == ("OSError" if rank == 1 else "RunError")
        assert sentence.endswith("the disk is full")
        assert sentence.startswith("process 1 on ") == (rank == 0)


def test_what_the_main_process_finds_is_found_by_all(found):
    for *_, returned, raised in found:
        assert returned == "returned of process 0"
        assert raised == "ValueError: output_dir is a file"


def test_in_one_process():
    with pytest.raises(OSError, match="full"), raised_by_all():
        raise OSError("full")
    assert done_by_main(lambda: 3) == 3
