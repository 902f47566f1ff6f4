"""What every argument has: a help text, and a sentence for a value that is not one of its own."""

from collections.abc import Collection

from lrk.train.nearest import did_you_mean


def help_text(text: str) -> dict[str, str]:
    """The metadata of a field that transformers' parser reads."""
    return {"help": text}


def require_one_of(argument: str, value: str, allowed: Collection[str]) -> None:
    """Raise `ValueError`, with the nearest name, for a value that is not allowed."""
    if value not in allowed:
        raise ValueError(
            f"{argument} {value!r} is unknown; it must be one of {', '.join(allowed)}"
            f"{did_you_mean(value, allowed)}"
        )
