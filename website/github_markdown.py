"""MkDocs hook: lists as code hosts read them, in the dialect of Python-Markdown.

What belongs to an item is indented by the width of its marker on a code host, by four columns in
Python-Markdown, which also wants an empty line between a paragraph and a list.
"""

import re

_ITEM = re.compile(r" *(?:[-*+]|\d+[.)]) +(?=\S)")
# What may begin a list in the middle of a paragraph.
_INTERRUPTS = re.compile(r" *(?:[-*+]|1[.)]) +\S")
_FENCE = re.compile(r" *(?P<fence>`{3,}|~{3,})")
_INDENT = 4


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with its lists in Python-Markdown's form; code is moved with its item."""
    lines: list[str] = []
    columns: list[int] = []  # where the text of each open item begins
    fence = ""
    for line in markdown.splitlines():
        if not line.strip():
            lines.append("")
            continue
        indent = len(line) - len(line.lstrip())
        is_lazy = bool(lines and lines[-1]) and not _ITEM.match(line) and not _FENCE.match(line)
        in_list = bool(columns)
        while columns and indent < columns[-1] and not fence and not is_lazy:
            columns.pop()
        depth = len(columns)
        text = line[min(indent, columns[-1] if columns else 0) :]
        if not fence and (item := _ITEM.match(line)):
            if not in_list and lines and lines[-1] and _INTERRUPTS.match(line):
                lines.append("")
            columns.append(len(item[0]))
        if found := _FENCE.match(line):
            fence = "" if fence and found["fence"].startswith(fence) else fence or found["fence"]
        lines.append(" " * _INDENT * depth + text)
    return "\n".join(lines) + "\n"
