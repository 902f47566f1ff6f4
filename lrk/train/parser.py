"""From a YAML file and a command line to arguments: command line beats file beats default.

Values of the file go through the command line's parser as the strings that stand in the file, so a
value means the same in both places: `1e-5`, which YAML takes for text, is a number.
"""

import json
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, _ArgumentGroup
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from lrk.hf.backends import BACKENDS
from lrk.train.arguments import ATTENTION, KERNELS, LrkTrainingArguments
from lrk.train.nearest import did_you_mean
from lrk.train.presets import preset, preset_names
from lrk.train.yaml_text import read_mapping, read_text

STAGES = "stages"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


def parse(argv: Sequence[str]) -> LrkTrainingArguments:
    """Arguments from `[CONFIG.yaml | PRESET] [--KEY VALUE ...]`.

    `-` and `_` are the same in a key; a mapping such as `kernels: {attention: false}` is
    `--kernels.attention false`; an empty value or `null` in the file means the default.

    Raises:
        ValueError: in one sentence, for an unknown key or preset (with the nearest known one), a
            value of the wrong type, or a file that is no mapping.
    """
    return LrkTrainingArguments(**given(argv))


def given(argv: Sequence[str]) -> dict[str, Any]:
    """The values that the file and the command line give, by argument, in their types."""
    configuration = read_configuration(argv)
    if STAGES in configuration.content:
        raise ValueError(
            f"{configuration.path} has {STAGES}; lrk.train.stages.parse_stages reads it"
        )
    return values([(configuration.content, configuration.path)], configuration.options)


class Configuration(NamedTuple):
    """A file and a command line as they are written.

    Attributes:
        content: of the file, every scalar as text; empty without one.
        path: of the file.
        options: words of the command line.
    """

    content: dict[str, Any]
    path: str
    options: list[str]


def read_configuration(argv: Sequence[str]) -> Configuration:
    """The one file or preset that `argv` names, and its other words.

    Raises:
        ValueError: for several files, one that is absent or no mapping, or an unknown preset.
    """
    paths, options = split_file(argv)
    if not paths and options and options[0][:1] not in ("-", ""):
        paths = [preset(options.pop(0))]
    content = {key: value for path in paths for key, value in read_mapping(path).items()}
    return Configuration(content, "".join(map(str, paths)), options)


def values(mappings: Sequence[tuple[Mapping[str, Any], str]], options: list[str]) -> dict[str, Any]:
    """Arguments in their types: `options` beat the last mapping, which beats those before it.

    Args:
        mappings: keys with values as text, and where they stand, for the message.
    """
    parser = _Parser()
    of_option: dict[str, list[str]] = {}
    for content, where in mappings:
        of_option |= _words(content, where, parser)
    words = [word for words in of_option.values() for word in words]
    words += [underscored(word) for word in options]
    return _nested(parsed(parser, words, parser.keys), parser)


def split_file(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The configuration file, none or one, and the other words.

    Raises:
        ValueError: if there are several.
    """
    files = [word for word in argv if word.endswith((".yaml", ".yml")) and word[0] != "-"]
    if len(files) > 1:
        raise ValueError(
            f"there are {len(files)} configuration files: {', '.join(files)}; give one"
        )
    return [Path(file) for file in files], [word for word in argv if word not in files]


def parsed(parser: ArgumentParser, words: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """What `words` give, by argument.

    Raises:
        ValueError: for a word that `parser` does not know, with the nearest of its `keys`.
    """
    namespace, rest = parser.parse_known_args(words)
    if rest:
        key = rest[0].partition("=")[0]
        if not key.startswith("--"):
            raise ValueError(f"{rest[0]!r} is neither a key nor the value of one")
        raise ValueError(f"unknown key {key!r}{did_you_mean(key, keys)}")
    return vars(namespace)


class _Parser(HfArgumentParser):
    """One option per argument; those not given are absent, so that the dataclass fills them in."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.ours = LrkTrainingArguments.own_names()
        hints = get_type_hints(LrkTrainingArguments)
        self.lists = {item.name for item in fields(LrkTrainingArguments) if _is_list(hints, item)}
        self.lists_or_text = {
            name
            for name in self.lists
            if get_origin(hints[name]) is not list and str in get_args(hints[name])
        }
        self.mappings = {name for name, hint in hints.items() if _may_be_mapping(hint)}
        self.texts_or_truths = {
            name for name, hint in hints.items() if {str, bool} <= set(get_args(hint))
        }
        self._groups: dict[str, _ArgumentGroup] = {}
        super().__init__(
            LrkTrainingArguments,  # type: ignore[arg-type]
            prog="lrk-train",
            usage="lrk-train [CONFIG.yaml | PRESET] [--KEY VALUE ...]",
            epilog=f"presets: {', '.join(preset_names())}; --recipe auto [--gpu NAME] writes the "
            "file that it would run: docs/recipes.md",
            allow_abbrev=False,
        )

    def add_argument(self, *names: str, **options: Any) -> Action:  # type: ignore[override]
        name = names[0].lstrip("-")
        if name == "kernels":
            for kernel in KERNELS:
                help = f"run the lrk operation {kernel}"
                kind = _text_or_truth if kernel == ATTENTION else string_to_bool
                help += f", or one of {', '.join(BACKENDS)}" if kernel == ATTENTION else ""
                action = self.add_argument(f"--kernels.{kernel}", type=kind, help=help)
            return action
        if not names[0].startswith("--"):
            return super().add_argument(*names, **options)
        self.keys.append(names[0])
        if name in self.lists:
            options["nargs"] = "+"
        if name in self.mappings:
            options["type"] = _mapping
        if name in self.texts_or_truths:
            options["type"] = _text_or_truth
        if options.get("type") in (string_to_bool, _text_or_truth):
            options |= {"nargs": "?", "const": True}
        if name == "resume_from_checkpoint":
            options |= {"nargs": "?", "const": "true"}
        argument = name.removeprefix("no_").partition(".")[0]
        ours = argument in self.ours
        if ours and options.get("default") not in (None, []):
            options["help"] += f" (default: {options['default']})"
        options |= {"default": SUPPRESS, "required": False}
        # The form with hyphens is not needed beside it: hyphens become underscores beforehand.
        return self._group("lrk" if ours else "transformers").add_argument(names[0], **options)

    def _group(self, owner: str) -> _ArgumentGroup:
        if owner not in self._groups:
            self._groups[owner] = self.add_argument_group(f"arguments of {owner}")
        return self._groups[owner]

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _is_list(hints: dict[str, Any], item: Any) -> bool:
    hint = hints[item.name]
    return any(get_origin(part) is list for part in (hint, *get_args(hint)))


def _may_be_mapping(hint: Any) -> bool:
    return any(part is dict or get_origin(part) is dict for part in (hint, *get_args(hint)))


def _mapping(text: str) -> dict[str, Any] | str:
    """`{min_lr: 1e-6}` as a mapping; anything else is the path of a file, for transformers."""
    if not text.startswith("{"):
        return text
    try:
        return _typed(read_text(text))
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no mapping: {error}") from error


def _text_or_truth(text: str) -> str | bool:
    try:
        return string_to_bool(text)
    except ArgumentTypeError:
        return text


def underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    key, equals, value = word.partition("=")
    return "--" + key[2:].replace("-", "_") + equals + value


def _words(content: Mapping[str, Any], where: str, parser: _Parser) -> dict[str, list[str]]:
    """The words of each option; none for an empty value, which means the default."""
    known = [key.lstrip("-") for key in parser.keys]
    words: dict[str, list[str]] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name == "kernels" and isinstance(value, dict):
            pairs = {f"kernels.{kernel}": choice for kernel, choice in value.items()}
        elif name == "kernels" and isinstance(value, str) and value in _NULLS:
            pairs = {}
        else:
            pairs = {name: value}
        for option, choice in pairs.items():
            if option not in known:
                near = did_you_mean(option, [*known, STAGES])
                raise ValueError(f"unknown key {option!r} in {where}{near}")
            words[option] = option_words(option, choice, option in parser.lists)
    return words


def option_words(option: str, value: Any, takes_list: bool) -> list[str]:
    """A value of a file as words of the command line; none for an empty one.

    Raises:
        ValueError: for a list where there is one value, and of what a command line has no words
            for.
    """
    if isinstance(value, dict):
        return [f"--{option}={json.dumps(_typed(value))}"]
    if isinstance(value, list):
        if value and not takes_list:
            raise ValueError(f"{option} is {value}; it must be one value, not a list")
        for item in value:
            if not isinstance(item, str):
                raise ValueError(f"{option} has {item!r} in its list; it must hold single values")
            if item.startswith("-") and not _is_number(item):
                raise ValueError(
                    f"{option} has {item!r} in its list, which begins with '-' as keys do; of a "
                    "file write ./ before it"
                )
        return [f"--{option}", *value] if value else []
    return [] if value in _NULLS else [f"--{option}={value}"]


def _typed(value: Any) -> Any:
    """The scalars of a mapping as JSON has them: numbers, truth values, null, text."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    try:
        return json.loads(value)
    except ValueError:  # no JSON, or a number of thousands of digits
        return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _nested(values: dict[str, Any], parser: _Parser) -> dict[str, Any]:
    """Gather `kernels.*` into one mapping, and unwrap single texts where a list is optional."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        head, dot, kernel = name.partition(".")
        if dot:
            nested.setdefault(head, {})[kernel] = value
        else:
            alone = name in parser.lists_or_text and len(value) == 1
            nested[name] = value[0] if alone else value
    return nested
