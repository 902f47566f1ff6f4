"""Links, anchors, pictures and names of files lead somewhere, on a code host and on the site."""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.markdown import ROOT, headings, links, pages, spans

# Nothing is fetched here: a link to another host is a decision, written down once.
HOSTS = {"docs.iterative.ai", "github.com"}
FOLDERS = ("bench", "configs", "constraints", "docs", "examples", "kernels", "lrk", "studies")
_FILE = re.compile(rf"(?:{'|'.join(FOLDERS)}|tests|website)/[\w./-]*\w/?")
# Filled by runs on a GPU.
MADE = "bench/results"


@cache
def anchors(page: str) -> Counter[str]:
    """Of headings, as GitHub makes them; mkdocs differs where two are alike."""
    return Counter(_slug(heading.text) for heading in headings(page))


def _slug(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page):
    faults = []
    for link in links(page):
        address = urlsplit(link.text)
        if address.scheme:
            if address.scheme != "https" or address.hostname not in HOSTS:
                faults.append(f"{link}: {link.text} is no https address of a host of HOSTS")
            continue
        target = (ROOT / page).parent / unquote(address.path) if address.path else ROOT / page
        if not target.exists():
            faults.append(f"{link}: there is no {link.text}")
        elif not target.resolve().is_relative_to(ROOT):
            faults.append(f"{link}: {link.text} lies outside of the repository")
        elif address.fragment:
            faults += _anchor_faults(str(link), link.text, target, address.fragment)
    assert not faults, "\n".join(faults)


def _anchor_faults(where: str, link: str, target: Path, fragment: str) -> list[str]:
    if target.suffix != ".md":
        return [f"{where}: {link} has an anchor, and is no page"]
    found = anchors(str(target.resolve().relative_to(ROOT)))[fragment]
    if found == 1:
        return []
    return [f"{where}: {link} has {found or 'no'} headings of that name"]


@pytest.mark.parametrize("page", pages())
def test_pictures_have_a_text(page):
    for picture in (link for link in links(page) if link.image):
        assert Path(urlsplit(picture.text).path).suffix in {".png", ".svg"}, f"{picture}"


def test_every_picture_is_shown():
    shown = {
        ((ROOT / page).parent / unquote(urlsplit(link.text).path)).resolve()
        for page in pages()
        for link in links(page)
    }
    # The site shows the dark one beside it by itself.
    shown |= {path.with_name(f"{path.stem}-dark{path.suffix}") for path in shown}
    kept = {path for kind in ("png", "svg") for path in (ROOT / "docs").rglob(f"*.{kind}")}
    assert len(kept) > 5
    assert not kept - shown, f"no page shows {sorted(path.name for path in kept - shown)}"


@pytest.mark.parametrize("page", pages())
def test_files_that_are_named_are_there(page):
    named = [span for span in spans(page) if _FILE.fullmatch(span.text)]
    # OPERATION stands for a name.
    named = [span for span in named if not re.search(f"^{MADE}|/[A-Z]+(/|$)", span.text)]
    missing = [f"{span}: {span.text}" for span in named if not (ROOT / span.text).exists()]
    assert not missing, f"no such file: {', '.join(missing)}"


def test_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
