"""JSON files that the user names."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, argument: str) -> Any:
    """The content of a file.

    Args:
        argument: that names it, for the message.

    Raises:
        ValueError: if it does not exist or is not JSON.
    """
    if not path.is_file():
        raise ValueError(f"{argument} {str(path)!r} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{argument} {str(path)!r} is not JSON: {error}") from error


def text_of(value: Any) -> str:
    """`value`, which must be text that a tokenizer can read.

    Raises:
        TypeError: for another type.
        ValueError: for half of a surrogate pair, which JSON can hold and UTF-8 cannot.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode("utf-8")
    return value
