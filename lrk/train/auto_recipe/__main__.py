"""`python -m lrk.train.auto_recipe [FILE]` writes docs/recipes.md from the evidence."""

import sys
from pathlib import Path

from lrk.train.auto_recipe.evidence import read_evidence
from lrk.train.auto_recipe.page import page

PAGE = Path("docs") / "recipes.md"


def main() -> None:
    """Write the page to the file that is named, or to `docs/recipes.md`."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    file.write_text(page(read_evidence()), encoding="utf-8")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
