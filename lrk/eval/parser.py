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
from lrk.train.parser import option_words, read_yaml, underscored


def parse(argv: Sequence[str]) -> EvalArguments:
    """Arguments from `[CONFIG.yaml] [--KEY VALUE ...]`.

    Raises:
        ValueError: in one sentence, for an unknown key (with the nearest known one), a value of
            the wrong type, or a file that is no mapping.
    """
    parser = _Parser()
    files = [word for word in argv if word.endswith((".yaml", ".yml")) and word[0] != "-"]
    if len(files) > 1:
        raise ValueError(
            f"there are {len(files)} configuration files: {', '.join(files)}; give one"
        )
    words = [word for file in files for word in _words_of_file(Path(file), parser.keys)]
    words += [underscored(word) for word in argv if word not in files]
    namespace, rest = parser.parse_known_args(words)
    if rest:
        key = rest[0].partition("=")[0]
        if not key.startswith("--"):
            raise ValueError(f"{rest[0]!r} is neither a key nor the value of one")
        raise ValueError(f"unknown key {key!r}{did_you_mean(key, parser.keys)}")
    return EvalArguments(**vars(namespace))


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
