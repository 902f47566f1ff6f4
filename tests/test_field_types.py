"""Types of fields, as a Python API takes them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from lrk.field_types import check_types


@dataclass
class Arguments:
    count: int = 1
    share: float = 0.5
    patch: bool | None = None
    folder: str | None = None
    lengths: list[int] = field(default_factory=list)
    either: str | list[str] = "all"

    def __post_init__(self) -> None:
        check_types(self)


def test_what_means_the_same_is_converted():
    given = Arguments(np.int64(3), 1, True, Path("a"), (np.int32(4), 5), ("a", "b"))
    assert given == Arguments(3, 1.0, True, "a", [4, 5], ["a", "b"])
    assert type(given.count) is int
    assert type(given.share) is float
    assert [type(each) for each in given.lengths] == [int, int]


@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [
        ("patch", "false", "bool or None"),
        ("patch", 0, "bool or None"),
        ("count", "3", "int"),
        ("count", 3.0, "int"),
        ("count", True, "int"),
        ("count", None, "int"),
        ("share", "0.5", "float"),
        ("folder", 3, "str or None"),
        ("lengths", "128", r"list\[int\]"),
        ("lengths", [128, "256"], r"list\[int\]"),
        ("either", 3, r"str or list\[str\]"),
    ],
)
def test_another_type_is_one_sentence(name, value, kinds):
    with pytest.raises(ValueError, match=rf"^{name} is .*, of type .*; it must be {kinds}$"):
        Arguments(**{name: value})
