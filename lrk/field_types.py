"""The types of a dataclass's fields, which Python itself does not check."""

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_types(arguments: Any, names: Sequence[str] | None = None) -> None:
    """Bring the fields of a dataclass to their annotated types, in place.

    An integer is a float, a tuple a list and a list a `tuple[X, ...]`, a path a string, and numpy's
    numbers are numbers; text is none of them, nor is a number a truth value: `patch="false"` would
    be true.

    Args:
        names: of the fields to check; all by default.

    Raises:
        ValueError: for another type, in one sentence that names the field.
    """
    hints = get_type_hints(type(arguments))
    for name in [item.name for item in fields(arguments)] if names is None else names:
        value = getattr(arguments, name)
        fitting = [kind for kind in kinds(hints[name]) if _fits(value, kind)]
        if not fitting:
            raise ValueError(
                f"{name} is {value!r}, of type {type(value).__name__}; it must be "
                f"{' or '.join(map(_written, kinds(hints[name])))}"
            )
        object.__setattr__(arguments, name, _converted(value, fitting[0]))


def kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type hint."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is bool or kind is NoneType:
        return isinstance(value, kind)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        return not isinstance(value, Integral) or abs(int(value)) <= sys.float_info.max
    if kind is str:
        return isinstance(value, str | os.PathLike)
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return isinstance(value, list | tuple) and all(
            any(_fits(each, one) for one in kinds(item)) for each in value
        )
    return isinstance(value, get_origin(kind) or kind)


def _converted(value: Any, kind: Any) -> Any:
    if kind in (int, float):
        return kind(value)
    if kind is str:
        return os.fspath(value)
    if get_origin(kind) is list:
        of_item = kinds(get_args(kind)[0])
        return [
            _converted(each, next(one for one in of_item if _fits(each, one))) for each in value
        ]
    return value


def _written(kind: Any) -> str:
    if kind is NoneType:
        return "None"
    return str(kind) if get_origin(kind) is not None else getattr(kind, "__name__", str(kind))
