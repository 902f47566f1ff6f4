"""`python -m lrk.train.auto_recipe [FILE]` writes docs/recipes.md from the evidence."""

import argparse
from pathlib import Path

from lrk.train.auto_recipe.evidence import read_evidence
from lrk.train.auto_recipe.page import page

PAGE = Path("docs") / "recipes.md"


def main() -> None:
    """Write the page to the file that is named, or to `docs/recipes.md`."""
    parser = argparse.ArgumentParser(
        prog="python -m lrk.train.auto_recipe",
        description="Write docs/recipes.md, or another file, from the evidence.",
    )
    parser.add_argument("file", type=Path, nargs="?", default=PAGE, help=f"(default: {PAGE})")
    file = parser.parse_args().file
    file.write_text(page(read_evidence()), encoding="utf-8")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
