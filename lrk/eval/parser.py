"""From a YAML file and a command line to arguments, by the rules of `lrk-train`.

Command line beats file beats default; `-` and `_` are the same in a key; values of the file are
read as if they stood on the command line.
"""

from argparse import SUPPRESS
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn, get_origin, get_type_hints

from transformers import HfArgumentParser

from lrk.eval.arguments import EvalArguments
from lrk.train.nearest import did_you_mean
from lrk.train.parser import option_words, parsed, split_file, underscored
from lrk.train.yaml_text import read_mapping


def parse(argv: Sequence[str]) -> EvalArguments:
    """Arguments from `[CONFIG.yaml] [--KEY VALUE ...]`.

    Raises:
        ValueError: in one sentence, for an unknown key (with the nearest known one), a value of
            the wrong type, or a file that is no mapping.
    """
    parser = _Parser()
    paths, options = split_file(argv)
    words = [word for path in paths for word in words_of(read_mapping(path), str(path))]
    words += [underscored(word) for word in options]
    return EvalArguments(**parsed(parser, words, parser.keys))


class _Parser(HfArgumentParser):
    """One option per argument; those not given are absent, so that the dataclass fills them in."""

    def __init__(self) -> None:
        super().__init__(
            EvalArguments,  # type: ignore[arg-type]
            prog="lrk-eval",
            usage="lrk-eval [CONFIG.yaml] [--KEY VALUE ...]",
            allow_abbrev=False,
        )
        self.keys = [f"--{item.name}" for item in fields(EvalArguments)]
        defaults = {item.name: item.default for item in fields(EvalArguments)}
        for action in self._actions:
            default = defaults.get(action.dest)
            if default not in (None, MISSING):
                action.help = f"{action.help} (default: {default})"
            action.default = SUPPRESS
            action.required = False

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def words_of(content: Mapping[str, Any], where: str) -> Iterator[str]:
    """A mapping of the file as words of the command line.

    Raises:
        ValueError: for an unknown key, and a value that has no words.
    """
    hints = get_type_hints(EvalArguments)
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise ValueError(f"unknown key {name!r} in {where}{did_you_mean(name, hints)}")
        yield from option_words(name, value, get_origin(hints[name]) is list)
