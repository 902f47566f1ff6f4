"""A file and a command line as words that an argparse parser reads, of every command alike.

Values of the file go through the command line's parser as the strings that stand in the file, so a
value means the same in both places: `1e-5`, which YAML takes for text, is a number.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrk.train.nearest import did_you_mean

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
"""What stands in a file for the default."""


def split_file(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The configuration file, none or one, and the other words.

    Raises:
        ValueError: if there are several.
    """
    files = [word for word in argv if word.endswith((".yaml", ".yml")) and word[0] != "-"]
    if len(files) > 1:
        raise ValueError(
            f"there are {len(files)} configuration files: {', '.join(files)}; give one"
        )
    return [Path(file) for file in files], [word for word in argv if word not in files]


def parsed(parser: ArgumentParser, words: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """What `words` give, by argument.

    Raises:
        ValueError: for a word that `parser` does not know, with the nearest of its `keys`.
    """
    namespace, rest = parser.parse_known_args(words)
    if rest:
        key = rest[0].partition("=")[0]
        if not key.startswith("--"):
            raise ValueError(f"{rest[0]!r} is neither a key nor the value of one")
        raise ValueError(f"unknown key {key!r}{did_you_mean(key, keys)}")
    return vars(namespace)


def option_words(option: str, value: Any, takes_list: bool) -> list[str]:
    """A value of a file as words of the command line; none for an empty one.

    Raises:
        ValueError: for a list where there is one value, and of what a command line has no words
            for.
    """
    if isinstance(value, dict):
        return [f"--{option}={json.dumps(typed(value))}"]
    if isinstance(value, list):
        if value and not takes_list:
            raise ValueError(f"{option} is {value}; it must be one value, not a list")
        for item in value:
            if not isinstance(item, str):
                raise ValueError(f"{option} has {item!r} in its list; it must hold single values")
            if item.startswith("-") and not _is_number(item):
                raise ValueError(
                    f"{option} has {item!r} in its list, which begins with '-' as keys do; of a "
                    "file write ./ before it"
                )
        return [f"--{option}", *value] if value else []
    return [] if value in NULLS else [f"--{option}={value}"]


def typed(value: Any) -> Any:
    """The scalars of a mapping as JSON has them: numbers, truth values, null, text."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    try:
        return json.loads(value)
    except ValueError:  # no JSON, or a number of thousands of digits
        return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
