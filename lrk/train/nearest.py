"""The sentence for a name that is none of those known, and what it was probably meant to be."""

import difflib
from collections.abc import Collection, Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'longrecipe'?`, or an empty string if nothing is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def require_one_of(argument: str, value: str, allowed: Collection[str]) -> None:
    """Raise `ValueError`, with the nearest name, for a value that is not allowed."""
    if value not in allowed:
        raise ValueError(
            f"{argument} {value!r} is unknown; it must be one of {', '.join(allowed)}"
            f"{did_you_mean(value, allowed)}"
        )
