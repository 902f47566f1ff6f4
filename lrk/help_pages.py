"""The help of every command, as files: `python -m lrk.help_pages` makes them from the parsers.

They lie in `lrk/help`, where `lrk_commands` finds them without importing lrk, and stand in
docs/commands.md.
"""

import argparse
import re
from pathlib import Path

from lrk.atomic import write_text
from lrk.command_line import HelpFormatter

FOLDER = Path(__file__).parent / "help"
DOCUMENT = Path("docs") / "commands.md"
# A block of the document, under the command that prints it.
_BLOCK = re.compile(r"(### `(?P<command>[^`]+) --help`\n\n```text\n).*?(?=```\n)", re.DOTALL)


def help_pages() -> dict[str, str]:
    """The help of each command and subcommand, and what `lrk-train` says of presets, by name."""
    from lrk import env
    from lrk.data import command as data
    from lrk.eval.parser import Parser as EvalParser
    from lrk.merge import command as merge
    from lrk.plan import command as plan
    from lrk.train.parser import Parser as TrainParser
    from lrk.train.presets import presets_table, what_to_type

    parsers = [TrainParser(), plan.parser(), EvalParser(), data.parser(), merge.parser()]
    whole = [each for parser in parsers for each in (parser, *_subparsers(parser))]
    pages = {parser.prog: parser.format_help() for parser in [*whole, env.parser()]}
    return {
        **pages,
        "presets": presets_table() + "\n",
        "what-to-type": what_to_type() + "\n",
    }


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [
        each
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for each in action.choices.values()
    ]


def file_of(page: str) -> Path:
    """Where a page lies, for `lrk_commands` to find."""
    return FOLDER / f"{page.replace(' ', '-')}.txt"


def document_with(text: str, pages: dict[str, str]) -> str:
    """docs/commands.md with the help that commands print now."""
    return _BLOCK.sub(lambda found: found[1] + pages[found["command"]], text)


def main() -> None:
    """Write the files, and the blocks of docs/commands.md where it is there."""
    parser = argparse.ArgumentParser(
        prog="python -m lrk.help_pages", description=__doc__, formatter_class=HelpFormatter
    )
    parser.parse_args()
    pages = help_pages()
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages.items():
        if not name.startswith("python"):
            write_text(file_of(name), text)
    if DOCUMENT.is_file():
        write_text(DOCUMENT, document_with(DOCUMENT.read_text(encoding="utf-8"), pages))
    print(f"wrote the pages of {FOLDER}")


if __name__ == "__main__":
    main()
