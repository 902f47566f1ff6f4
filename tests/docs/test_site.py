"""The site: built as `make docs` builds it, whole, and readable without a network."""

import ast
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("mkdocs", reason="needs the extra docs")

ROOT = Path(__file__).resolve().parents[2]
# Choices that the modules of the arguments share; the arguments themselves are public.
CHOICES = ("ATTENTION", "DTYPES", "IMPACTFUL", "KERNELS", "LONGCE", "PLAIN", "TRAIN_SHARE")
INTERNAL = {f"lrk.train.arguments.{name}" for name in CHOICES}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, "_Page"]:
    found = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    return {path: page for path, page in found.items() if path.name != "404.html"}


def test_every_public_name_is_in_the_api_reference(site: Path) -> None:
    _, _, packed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    documented = {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}
    public = set(_public_names())
    assert len(public) > 60
    missing = {name for name in public if name not in documented and _outer(name) not in public}
    assert missing - INTERNAL == set()


def test_nothing_is_fetched_from_elsewhere(pages: dict[Path, "_Page"]) -> None:
    assert [address for page in pages.values() for address in page.fetched if "//" in address] == []


def test_every_link_of_a_page_leads_somewhere(pages: dict[Path, "_Page"]) -> None:
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = unquote(link).partition("#")
            found = path if not target else Path(os.path.normpath(path.parent / target))
            assert found.is_file(), (path, link)
            assert not anchor or anchor in pages[found].anchors, (path, link)


def test_pictures_are_there_and_follow_the_scheme_of_the_page(pages: dict[Path, "_Page"]) -> None:
    pictures = {(path, address) for path, page in pages.items() for address in page.pictures}
    assert len(pictures) > 10
    for path, address in pictures:
        source, _, scheme = unquote(address).partition("#")
        assert (path.parent / source).is_file(), (path, address)
        is_dark = source.endswith("-dark.png")
        has_dark = (path.parent / (source.removesuffix(".png") + "-dark.png")).is_file()
        assert scheme == ("only-dark" if is_dark else "only-light" if has_dark else ""), address


def _public_names() -> Iterator[str]:
    for folder, package in ((ROOT / "lrk", "lrk"), (ROOT / "kernels", "lrk.kernels")):
        for path in sorted(folder.rglob("__init__.py")):
            inside = path.parent.relative_to(folder).parts
            for statement in ast.parse(path.read_text()).body:
                if isinstance(statement, ast.Assign) and "__all__" in ast.unparse(statement):
                    for name in ast.literal_eval(statement.value):
                        yield ".".join((package, *inside, name))
    for path in sorted((ROOT / "lrk/train/arguments").glob("*.py")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.ClassDef) and statement.name.endswith("Arguments"):
                yield f"lrk.train.arguments.{path.stem}.{statement.name}"


def _outer(name: str) -> str:
    """The same name in the package around its own, which may hand it on."""
    package, _, last = name.rpartition(".")
    return f"{package.rpartition('.')[0]}.{last}"


class _Page(HTMLParser):
    """What a browser fetches with a page, where it leads on, and where it can be entered."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.pictures: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and not re.match("[a-z]+:", given.get("href", "https:")):
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append(given["src"])
        if "src" in given or (tag == "link" and given["rel"] not in ("prev", "next", "canonical")):
            self.fetched.append(given.get("src") or given["href"])
