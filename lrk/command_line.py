"""What the command lines share: how help is laid out, and what every command answers.

The help of a command shows examples first, then its options by subject, then how it ends. It is as
wide everywhere, so that `lrk/help` can hold it (see `lrk.help_pages`).
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from transformers.hf_argparser import string_to_bool

import lrk
from lrk.versions import pip_install

WIDTH = 80
SHELLS = ("bash", "zsh")
# What stands in help for a value, by what reads it.
_METAVARS: dict[Any, str] = {int: "N", float: "X", string_to_bool: "BOOL"}
EXIT_CODES = """\
exit codes:
  0      done
  1      a file could not be read or written, or the run could not go on
  2      the command line, or what it names, is wrong; nothing was begun
  128+n  ended by signal n: 130 by Ctrl-C, 143 by kill"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, of one width, with examples and exit codes as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=WIDTH)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _METAVARS.get(action.type, "TEXT")


class CommandParser(argparse.ArgumentParser):
    """argparse's, whose errors are a `ValueError`: one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help says what there is")


def looks(what: str, examples: Sequence[tuple[str, str]], epilog: str = "") -> dict[str, Any]:
    """The options of a parser that make its help: what the command is for, and examples.

    Args:
        examples: what is done, and the command that does it.
        epilog: goes before the exit codes.
    """
    shown = [f"  # {purpose}\n  {command}" for purpose, command in examples]
    return {
        "description": "\n".join([what, "", "examples:", *shown]),
        "epilog": f"{epilog}\n\n{EXIT_CODES}" if epilog else EXIT_CODES,
        "formatter_class": HelpFormatter,
        "add_help": False,
        "allow_abbrev": False,
    }


def add_answers(
    parser: argparse.ArgumentParser,
    whole: Callable[[], argparse.ArgumentParser] | None = None,
) -> argparse._ArgumentGroup:
    """The options that a command answers, and does nothing else, as a group of its help.

    Args:
        whole: the parser to complete, where `parser` has a part of the options.
    """
    group = parser.add_argument_group("help")
    add = group.add_argument
    add("-h", "--help", action="help", help="show this")
    add("--version", action="version", version=f"lrk {lrk.__version__}", help="show that of lrk")
    add(
        "--print_completion",
        action=_PrintCompletion,
        whole=whole,
        choices=SHELLS,
        default=argparse.SUPPRESS,
        metavar="SHELL",
        help="what completes the command in bash or zsh",
    )
    return group


class _PrintCompletion(argparse.Action):
    def __init__(self, whole: Callable[[], argparse.ArgumentParser] | None, **options: Any) -> None:
        super().__init__(**options)
        self._whole = whole

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(completion(self._whole() if self._whole else parser, values))
        parser.exit()


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that completes a command in `bash` or `zsh`.

    Raises:
        ValueError: without shtab.
    """
    try:
        import shtab
    except ImportError as error:
        raise ValueError(
            f"print_completion needs shtab, which is not installed: {pip_install('shtab')}"
        ) from error
    return shtab.complete(parser, shell)


def underscored(word: str) -> str:
    """A word of a command line; `-` and `_` are the same in the name of an option."""
    if not word.startswith("--"):
        return word
    key, equals, value = word.partition("=")
    return "--" + key[2:].replace("-", "_") + equals + value
