"""Every block of README, CONTRIBUTING and docs/ does what it shows, on small stand-ins."""

import pytest

from tests.docs.markdown import Block, blocks, pages

LANGUAGES = {"bash", "python", "yaml", "text"}
BLOCKS = [block for page in pages() for block in blocks(page)]


@pytest.mark.parametrize("page", pages())
def test_languages(page):
    """A block without a language would not be tried, and is not coloured either."""
    others = [str(block) for block in blocks(page) if block.language not in LANGUAGES]
    assert not others, f"blocks must be one of {sorted(LANGUAGES)}: {', '.join(others)}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language != "text"], ids=str)
def test_block(block: Block, page_run):
    page_run(block.page).check(block)
