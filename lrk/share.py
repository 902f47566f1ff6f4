"""One of n jobs that do parts of the same work: `3/8` is the fourth of eight.

Who does what follows from the work and the two numbers alone, not from what others have done. So
jobs need not know of each other, may run at any time, and may be repeated.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lrk.atomic import remove_temporaries
from lrk.lock import PREFIX as LOCKS
from lrk.lock import in_turn, locked

# The part of a folder that is held by who looks at the locks of others.
_LOOKING = "looking"


@dataclass(frozen=True)
class Share:
    """The share of job `index` of `count`.

    Raises:
        ValueError: unless 0 <= index < count.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard is {self.index}/{self.count}; it must read i/n with i from 0 to n - 1"
            )

    @classmethod
    def parse(cls, text: str) -> "Share":
        """`3/8`: the fourth of eight."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ValueError(
                f"shard is {text!r}; it must read i/n with i from 0 to n - 1, such as 0/4"
            )
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, number: int) -> bool:
        """Of numbered parts that cost the same: those that are `index` modulo `count`."""
        return number % self.count == self.index

    def of_costs(self, costs: Sequence[float]) -> list[int]:
        """Of parts that cost so much: which are of this share, the dearest first.

        Each part, from the dearest to the cheapest, goes to the job that has least to do, of equal
        ones to the one with the fewest parts: the longest job then has at most 4/3 - 1/(3 n) times
        the work that it has in the best division (Graham, "Bounds on multiprocessing timing
        anomalies", 1969).
        """
        loads = [(0.0, 0)] * self.count
        mine = []
        for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
            job = loads.index(min(loads))
            loads[job] = (loads[job][0] + costs[number], loads[job][1] + 1)
            if job == self.index:
                mine.append(number)
        return mine

    def divided(self, within: "Share") -> "Share":
        """The share of one of several processes that do this share together."""
        return Share(self.index * within.count + within.index, self.count * within.count)


def process_share() -> Share:
    """Of a process among all that `torchrun` or `accelerate launch` started, on all machines."""
    return _launched("RANK", "WORLD_SIZE")


def local_share() -> Share:
    """Of a process among those on this machine; the whole where the launcher does not say."""
    return _launched("LOCAL_RANK", "LOCAL_WORLD_SIZE")


def _launched(index: str, count: str) -> Share:
    given = os.environ.get(index), os.environ.get(count)
    if not all(text is not None and text.isdecimal() for text in given):
        return Share()
    return Share(*(int(text) for text in given if text is not None))


@contextmanager
def at_work(folder: Path, share: Share) -> Iterator[None]:
    """Hold a share of a folder, beside those who do other shares of as many.

    Who has the whole deletes what others left half written.

    Raises:
        ValueError: if another process does the same share, or the folder is shared otherwise.
    """
    part = "" if share.count == 1 else f"-{share.index}-of-{share.count}"
    with locked(folder, part[1:]):
        others = [
            other
            for other in (lock.name.removeprefix(LOCKS) for lock in folder.glob(f"{LOCKS}*"))
            if other not in (part, f"-{_LOOKING}")
            and not (part and other.endswith(f"-of-{share.count}"))
        ]
        if others:
            # A lock is seen to be free by taking it, which to another who looks is not free.
            with in_turn(folder, "looking who works in the folder", _LOOKING):
                for other in others:
                    with locked(folder, other[1:]):
                        pass
        if not part:
            remove_temporaries(folder)
        yield
