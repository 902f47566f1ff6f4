"""Choices of a recipe: arguments of `lrk-train`, each with the reason for its value."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

GIVEN = "given"


@dataclass(frozen=True)
class Choice:
    """The value of one argument.

    Attributes:
        name: of the argument of `lrk-train`.
        reason: why it has this value; `GIVEN` for one that the user gave.
        evidence: names of the rows and comparisons that it rests on; empty where nothing was
            measured.
    """

    name: str
    value: Any
    reason: str
    evidence: tuple[str, ...] = ()


def grouped(choices: Iterable[Choice]) -> Iterator[list[Choice]]:
    """Neighbours of one reason together."""
    for _, group in groupby(choices, key=lambda choice: (choice.reason, choice.evidence)):
        yield list(group)


class Choices:
    """Choices in the order in which they were made; what the user gave beats every one of them.

    Args:
        given: arguments that the user gave, in their types.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self._made: dict[str, Choice] = {}

    def __iter__(self) -> Iterator[Choice]:
        """Those made, then what else was given."""
        yield from self._made.values()
        for name, value in self.given.items():
            if name not in self._made:
                yield Choice(name, value, GIVEN)

    def make(self, name: str, value: Any, reason: str, *evidence: str) -> Any:
        """Choose a value, unless one was given; returns the one that holds."""
        if name in self.given:
            self._made[name] = Choice(name, self.given[name], GIVEN)
        else:
            self._made[name] = Choice(name, value, reason, evidence)
        return self._made[name].value

    @property
    def values(self) -> dict[str, Any]:
        """The arguments of the run."""
        return {choice.name: choice.value for choice in self}
