"""MkDocs hook: the files of the repository that pages link to are pages of the site too.

Pages of docs/ and those at the top of the repository link to one another, to sources,
configurations and folders by relative paths, as a code host shows them. Here every such file gets a
page: Markdown and notebooks as text, anything else as code, a folder as a list. Links are then
rewritten from paths of the repository to pages of the site, and what is left unresolved is left to
MkDocs' own checks.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mkdocs.plugins
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook_page import markdown_of
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parent.parent
TOP_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PICTURES = (".png", ".svg", ".jpg", ".gif")

_FENCED = re.compile(r"^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence) *$", re.MULTILINE | re.DOTALL)
# Code is matched so that it is passed over: what looks like a link in it is none.
_LINK = re.compile(
    r"(?P<ticks>`+).+?(?P=ticks)|\]\((?P<target>[^()\s]+)(?P<title>\s+\"[^\"]*\")?\)"
)
_PICTURE = re.compile(r"<picture>.*?<img(?P<attributes>[^>]*)>.*?</picture>", re.DOTALL)
_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<source>[^()\s]+)\)")


@dataclass(frozen=True)
class Shown:
    """A file or folder of the repository, and the page that shows it."""

    path: Path
    uri: str

    @classmethod
    def of(cls, path: Path) -> "Shown":
        """Where a file or folder of the repository is found on the site."""
        name = path.relative_to(ROOT).as_posix()
        if name == "README.md":
            return cls(path, "index.md")
        if name.startswith("docs/"):
            return cls(path, name.removeprefix("docs/"))
        if path.is_dir():
            return cls(path, f"source/{name}/index.md")
        if path.suffix == ".ipynb":
            return cls(path, name.removesuffix(".ipynb") + ".md")
        if path.suffix == ".md":
            return cls(path, name.lower())
        return cls(path, name if path.suffix in PICTURES else f"source/{name}.md")


_shown: dict[str, Shown] = {}  # by the page's address in the site


@mkdocs.plugins.event_priority(100)  # before the plugins that look at the site's files
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file at the top that is one, and for whatever pages link to."""
    _shown.clear()
    for page in files.documentation_pages():
        _shown[page.src_uri] = Shown(ROOT / "docs" / page.src_uri, page.src_uri)
    pending = list(_shown.values())
    for name in TOP_PAGES:
        pending.append(_add(ROOT / name, files, config))
    while pending:
        for path in _leads_to(pending.pop().path):
            if Shown.of(path).uri not in _shown:
                pending.append(_add(path, files, config))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rewrite the links and pictures of a page that was written for the repository."""
    shown = _shown[page.file.src_uri]
    if page.file.src_uri.startswith("source/"):
        return markdown
    return _outside_code(markdown, lambda text: _rewritten(text, shown))


def _add(path: Path, files: Files, config: MkDocsConfig) -> Shown:
    shown = _shown[Shown.of(path).uri] = Shown.of(path)
    if path.suffix in PICTURES:
        files.append(File.generated(config, shown.uri, abs_src_path=str(path)))
    else:
        files.append(File.generated(config, shown.uri, content=_content(shown, files, config)))
    return shown


def _content(shown: Shown, files: Files, config: MkDocsConfig) -> str:
    """The Markdown of a page that has no file in docs/."""
    path = shown.path
    if path.suffix == ".ipynb":
        text, pictures = markdown_of(path, path.stem)
        for name, content in pictures.items():
            uri = f"{Path(shown.uri).parent.as_posix()}/{name}"
            files.append(File.generated(config, uri, content=content))
        return text
    if path.suffix == ".md":
        is_home = shown.uri == "index.md"
        return ("---\nhide: [navigation]\n---\n\n" if is_home else "") + path.read_text()
    name = path.relative_to(ROOT).as_posix()
    head = f"---\ntitle: {name}\nhide: [navigation, toc]\nsearch: {{exclude: true}}\n---\n\n"
    head += f"# `{name}`\n\n"
    if path.is_dir():
        pages = {item.name: _address(Shown.of(item), shown) for item in _members(path)}
        return head + "".join(f"- [{name}]({page})\n" for name, page in pages.items())
    text = path.read_text()
    fence = "`" * (max((len(ticks) for ticks in re.findall("`+", text)), default=0) + 3)
    return f'{head}{fence}{_language(path)} linenums="1"\n{text.rstrip()}\n{fence}\n'


def _language(path: Path) -> str:
    try:
        return get_lexer_for_filename(path.name).aliases[0]
    except ClassNotFound:
        return "text"


def _members(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if item.is_file())


def _address(shown: Shown, page: Shown) -> str:
    """The link to what is shown from a page."""
    return os.path.relpath(shown.uri, Path(page.uri).parent)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change what lies between fenced blocks."""
    parts, end = [], 0
    for block in _FENCED.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])


def _leads_to(path: Path) -> Iterator[Path]:
    """Files and folders of the repository outside docs/ that a page links to."""
    if path.is_dir():
        yield from _members(path)
    if path.suffix not in (".md", ".ipynb"):
        return
    text = markdown_of(path, path.stem)[0] if path.suffix == ".ipynb" else path.read_text()
    targets: list[str] = []

    def note(part: str) -> str:
        targets.extend(link["target"] for link in _LINK.finditer(_plain(part)) if link["target"])
        return part

    _outside_code(text, note)
    for target in targets:
        found = _resolved(target.partition("#")[0], path.parent)
        if found is not None and not found.is_relative_to(ROOT / "docs"):
            yield found


def _resolved(target: str, folder: Path) -> Path | None:
    """The file that a relative link means, or None for addresses and what is not there."""
    if not target or re.match(r"[a-z]+:|/", target):
        return None
    path = Path(os.path.normpath(folder / target))
    return path if path.exists() and path.is_relative_to(ROOT) else None


def _plain(markdown: str) -> str:
    """`<picture>` elements as Markdown pictures."""

    def image(element: re.Match[str]) -> str:
        given = dict(re.findall(r'([a-z]+)="([^"]*)"', element["attributes"]))
        return f"![{given.get('alt', '')}]({given['src']})"

    return _PICTURE.sub(image, markdown)


def _rewritten(markdown: str, shown: Shown) -> str:
    def both(image: re.Match[str]) -> str:
        """A picture and the one for dark pages that lies beside it."""
        source = image["source"]
        dark = source.removesuffix(".png") + "-dark.png"
        if _resolved(dark, shown.path.parent) is None:
            return image[0]
        return f"![{image['alt']}]({source}#only-light)![{image['alt']}]({dark}#only-dark)"

    def link(found: re.Match[str]) -> str:
        if not found["target"]:
            return found[0]
        target, mark, fragment = found["target"].partition("#")
        path = _resolved(target, shown.path.parent)
        if path is None:
            return found[0]
        address = _address(Shown.of(path), shown)
        return f"]({address}{mark}{fragment}{found['title'] or ''})"

    return _LINK.sub(link, _IMAGE.sub(both, _plain(markdown)))
