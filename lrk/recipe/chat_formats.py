"""Rows of conversations in the forms that data sets have, and the one form that lrk reads on.

| form | columns | becomes |
|---|---|---|
| messages | `messages`: `{role, content}` each | itself |
| prompts | `prompt`, `completion` | itself |
| ShareGPT | `conversations`: `{from, value}` each; `system` | `messages` |
| Alpaca | `instruction`, `output`; `input`, `system` | `messages` |

What stands behind a semicolon may be absent.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
    "tool": "tool",
}

Row = Mapping[str, Any]


class ChatFormat(NamedTuple):
    """Columns that a row must have, those that it may have, and what is made of them."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    converted: Callable[[Row], dict[str, Any]]


def chat_columns(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the columns that hold a conversation; none if they hold none."""
    there = set(names)
    for chat in FORMATS:
        if there.issuperset(chat.needed):
            return (*chat.needed, *(name for name in chat.optional if name in there))
    return ()


def conversation(row: Row) -> dict[str, Any]:
    """A row of `chat_columns` alone as `messages`, or as `prompt` and `completion`.

    Raises:
        ValueError: for turns of ShareGPT that are none, and cells of Alpaca that are no text.
    """
    chat = next(chat for chat in FORMATS if set(row).issuperset(chat.needed))
    return chat.converted(row)


def _of_sharegpt(row: Row) -> dict[str, Any]:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError("conversations must be a list of {from, value}")
    return {"messages": [*_system(row), *map(_message, turns)]}


def _message(turn: Row) -> Row:
    if "role" in turn and "content" in turn:  # messages under ShareGPT's name
        return turn
    said, value = turn.get("from"), turn.get("value")
    if said not in _ROLES:
        raise ValueError(
            f"a turn of conversations is from {said!r}; it must be from one of {', '.join(_ROLES)}"
        )
    if not isinstance(value, str):
        raise ValueError(f"the value of a turn of conversations is {value!r}; it must be text")
    return {"role": _ROLES[said], "content": value}


def _of_alpaca(row: Row) -> dict[str, Any]:
    for name in ("instruction", "output"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name} is {row[name]!r}; it must be text")
    asked = "\n\n".join(part for part in (row["instruction"], _text(row, "input")) if part)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
    return {"messages": [*_system(row), *turns]}


def _system(row: Row) -> list[Row]:
    text = _text(row, "system")
    return [{"role": "system", "content": text}] if text else []


def _text(row: Row, name: str) -> str:
    """Of an optional column."""
    text = row.get(name)
    if not isinstance(text, str | None):
        raise ValueError(f"{name} is {text!r}; it must be text")
    return text or ""


FORMATS = (
    ChatFormat(("messages",), (), dict),
    ChatFormat(("prompt", "completion"), (), dict),
    ChatFormat(("conversations",), ("system",), _of_sharegpt),
    ChatFormat(("instruction", "output"), ("input", "system"), _of_alpaca),
)
NAMES = ", or ".join(" and ".join(chat.needed) for chat in FORMATS)
