"""Griffe extension: items of a docstring that describe several names at once."""

import re

import griffe

# `    rows, columns: (N,) int64.` and what is indented below it.
_ITEM = re.compile(
    r"^ {4}(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): (?P<text>.*(?:\n {5,}\S.*)*)", re.MULTILINE
)


class JointNames(griffe.Extension):
    """Gives each of the names an item of its own, so that each is found in the signature."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Take the items of one docstring apart."""
        if obj.docstring is not None:
            obj.docstring.value = _ITEM.sub(_taken_apart, obj.docstring.value)


def _taken_apart(item: re.Match[str]) -> str:
    return "\n".join(f"    {name}: {item['text']}" for name in item["names"].split(", "))
