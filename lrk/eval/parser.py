"""From a YAML file and a command line to arguments, by the rules of `lrk-train`.

Command line beats file beats default; `-` and `_` are the same in a key; values of the file are
read as if they stood on the command line.
"""

from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import NoReturn

from transformers import HfArgumentParser

from lrk.eval.arguments import EvalArguments
from lrk.train.nearest import did_you_mean
from lrk.train.parser import option_words, parsed, read_yaml, split_file, underscored


def parse(argv: Sequence[str]) -> EvalArguments:
    """Arguments from `[CONFIG.yaml] [--KEY VALUE ...]`.

    Raises:
        ValueError: in one sentence, for an unknown key (with the nearest known one), a value of
            the wrong type, or a file that is no mapping.
    """
    parser = _Parser()
    paths, options = split_file(argv)
    words = [word for path in paths for word in _words_of_file(path, parser.keys)]
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


def _words_of_file(path: Path, keys: Sequence[str]) -> Iterator[str]:
    for key, value in read_yaml(path).items():
        name = key.replace("-", "_")
        if f"--{name}" not in keys:
            known = [key.removeprefix("--") for key in keys]
            raise ValueError(f"unknown key {name!r} in {path}{did_you_mean(name, known)}")
        yield from option_words(name, value)
