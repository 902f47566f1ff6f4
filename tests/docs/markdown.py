"""What tests read of a Markdown file: fenced blocks, code spans, links and headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"( *)(`{3,}|~{3,})\s*([^`]*)")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HTML_LINK = re.compile(r"<(img|source|a)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\"", re.DOTALL)
_AUTOMATIC_LINK = re.compile(r"<(https?://[^>\s]+)>")
_HEADING = re.compile(r"(#{1,6}) +(.+?)(?: +#+)?\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its fence, `page` a path in the repository."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Inline:
    """A code span, the target of a link or a heading, and the line on which it begins."""

    page: str
    line: int
    text: str
    image: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def pages() -> tuple[str, ...]:
    """The pages that say how lrk is used: README, CONTRIBUTING and all of docs/."""
    found = ["README.md", "CONTRIBUTING.md"]
    return (*found, *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")))


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The fenced blocks of a page, also those that stand in lists."""
    return tuple(part for part in _parts(page) if isinstance(part, Block))


def spans(page: str) -> list[Inline]:
    """Code spans outside of blocks, in one line each."""
    found = [(line, " ".join(match[2].split())) for line, match in _matches(_SPAN, page)]
    return [Inline(page, line, text) for line, text in found]


def links(page: str) -> list[Inline]:
    """Targets of links and images outside of code, in Markdown and in HTML."""
    found = [(line, match[3], bool(match[1])) for line, match in _matches(_LINK, page, code=False)]
    # A picture may be the text of a link.
    inner = [(line, match) for line, match in _matches(_LINK, page, code=False) if match[2]]
    found += [
        (line, nested[3], bool(nested[1]))
        for line, match in inner
        for nested in _LINK.finditer(match[2])
    ]
    found += [
        (line, match[2].split()[0], match[1] != "a")
        for line, match in _matches(_HTML_LINK, page, code=False)
    ]
    found += [(line, m[1], False) for line, m in _matches(_AUTOMATIC_LINK, page, code=False)]
    return [Inline(page, line, target, image) for line, target, image in found]


def headings(page: str) -> list[Inline]:
    """Headings as they are written, without their marks."""
    prose = [part for part in _parts(page) if isinstance(part, Inline)]
    found = [(part.line, _HEADING.match(part.text)) for part in prose]
    return [Inline(page, line, match[2]) for line, match in found if match]


def paragraphs(page: str) -> Iterator[Inline]:
    """Lines of prose between empty lines and blocks, each paragraph as one text."""
    lines: list[Inline] = []
    for part in _parts(page):
        if isinstance(part, Inline) and part.text.strip():
            lines.append(part)
            continue
        yield from _joined(lines)
        lines = []
    yield from _joined(lines)


def _joined(lines: list[Inline]) -> Iterator[Inline]:
    if lines:
        yield Inline(lines[0].page, lines[0].line, "\n".join(each.text for each in lines))


def _matches(
    pattern: re.Pattern[str], page: str, code: bool = True
) -> Iterator[tuple[int, re.Match[str]]]:
    """Matches in the prose of a page and their lines, without code spans where not `code`."""
    for paragraph in paragraphs(page):
        text = paragraph.text if code else _SPAN.sub(_blank, paragraph.text)
        for match in pattern.finditer(text):
            yield paragraph.line + text.count("\n", 0, match.start()), match


def _blank(match: re.Match[str]) -> str:
    """A code span without its content, in as many lines."""
    return "`" + "\n" * match[0].count("\n") + "`"


@cache
def _parts(page: str) -> tuple[Block | Inline, ...]:
    """A page as blocks and lines of prose, in order."""
    parts: list[Block | Inline] = []
    fence, begin, language, content = "", 0, "", list[str]()
    indent = ""
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        match = _FENCE.match(line)
        if fence:
            if match and match[2].startswith(fence) and not match[3]:
                parts.append(Block(page, begin, language, "\n".join(content) + "\n"))
                fence = ""
            else:
                content.append(line.removeprefix(indent))
        elif match:
            indent, fence, begin, content = match[1], match[2], number, []
            language = match[3].split()[0] if match[3].strip() else ""
        else:
            parts.append(Inline(page, number, line))
    if fence:
        raise ValueError(f"{page}:{begin}: the block has no end")
    return tuple(parts)
