"""The English words of RULER: the lists of the package wonderwords, and a larger one by the user.

The lists are part of the benchmark's rules, so they are read from that package and not replaced.
"""

import importlib.util
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lrk.eval.json_file import read_json, text_of


@dataclass(frozen=True)
class Words:
    """Words by part of speech, as RULER combines them."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]

    def all(self) -> list[str]:
        """Every word once, sorted."""
        return sorted({*self.nouns, *self.adjectives, *self.verbs})


def is_installed() -> bool:
    """Whether the package with the lists is there."""
    return importlib.util.find_spec("wonderwords") is not None


def ruler_words() -> Words:
    """The lists of the installed wonderwords, without importing it."""
    folder = files("wonderwords") / "assets"

    def read(name: str) -> tuple[str, ...]:
        lines = (folder / f"{name}list.txt").read_text(encoding="utf-8").splitlines()
        return tuple(line.rstrip() for line in lines)

    return Words(read("noun"), read("adjective"), read("verb"))


def read_words(path: Path) -> tuple[str, ...]:
    """RULER's `english_words.json`, an object whose values are words, or a list of words.

    Raises:
        ValueError: if there is no such file or it holds something else.
    """
    content = read_json(path, "words")
    values = list(content.values()) if isinstance(content, dict) else content
    try:
        found = tuple(dict.fromkeys(map(text_of, values)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"words {str(path)!r} must be a list of words or an object of them: {error}"
        ) from error
    if isinstance(values, str) or not found:
        raise ValueError(f"words {str(path)!r} must be a list of words or an object of them")
    return found
