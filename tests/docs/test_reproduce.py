"""The page of figures names each picture, file of results and command that makes them."""

import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, pages

PAGE = "docs/guides/reproduce.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
MODULE = re.compile(r"python -m ((?:bench|studies|examples)\.\w+)|pytest (bench/\w+\.py)")
FILE = re.compile(r"`((?:docs|studies|bench|lrk)/[\w./-]+\.(?:png|json))`")


def _files(folder: str, pattern: str) -> list[str]:
    found = (ROOT / folder).glob(pattern)
    return sorted(str(path.relative_to(ROOT)) for path in found)


def _commands() -> list[str]:
    """The scripts that pages run."""
    texts = ((ROOT / page).read_text(encoding="utf-8") for page in pages())
    found = {match[1] or match[2] for text in texts for match in MODULE.finditer(text)}
    return sorted(found)


PICTURES = [name for name in _files("docs", "**/*.png") if not name.endswith("-dark.png")]
RESULTS = [*_files("studies/results", "**/*.json"), *_files("bench/results", "**/*.json")]


@pytest.mark.parametrize("name", [*PICTURES, *RESULTS])
def test_file_is_named(name):
    assert f"`{name}`" in TEXT or f"`{Path(name).parent}`" in TEXT


@pytest.mark.parametrize("script", _commands())
def test_command_is_named(script):
    assert script in TEXT


@pytest.mark.parametrize("name", sorted(set(FILE.findall(TEXT))))
def test_named_file_exists(name):
    assert (ROOT / name).is_file()


def test_pictures_have_a_dark_form():
    """The page says so of all."""
    missing = [name for name in PICTURES if not (ROOT / name.replace(".png", "-dark.png")).exists()]
    assert not missing
