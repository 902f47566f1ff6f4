"""From a YAML file and a command line to arguments: command line beats file beats default."""

import argparse
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import fields
from textwrap import fill
from typing import Any, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from lrk.command_line import WIDTH, add_answers, looks, underscored
from lrk.hf.backends import BACKENDS
from lrk.train import presets
from lrk.train.arguments import ATTENTION, KERNELS, LrkTrainingArguments
from lrk.train.arguments.data import DataArguments
from lrk.train.arguments.distillation import DistillationArguments
from lrk.train.arguments.evaluation import EvaluationArguments
from lrk.train.arguments.kernels import KernelArguments
from lrk.train.arguments.lora import LoraArguments
from lrk.train.arguments.losses import LossArguments
from lrk.train.arguments.memory import MemoryArguments
from lrk.train.arguments.model import ModelArguments
from lrk.train.arguments.positions import PositionArguments
from lrk.train.arguments.prediction import PredictionArguments
from lrk.train.arguments.processes import ProcessArguments
from lrk.train.arguments.samples import SampleArguments
from lrk.train.arguments.saving import SavingArguments
from lrk.train.nearest import did_you_mean
from lrk.train.option_words import NULLS, option_words, parsed, split_file, typed
from lrk.train.presets import preset
from lrk.train.yaml_text import read_mapping, read_text

STAGES = "stages"
USAGE = "lrk-train [CONFIG.yaml | PRESET] [--KEY VALUE ...]"
_DATA = "--data my-documents.jsonl"
LOOKS = looks(
    "Extend the context window of a pretrained model by training. Options of the\n"
    "command line beat the file, which beats the defaults.",
    [
        ("what a preset does and needs", f"lrk-train llama-3-8b-131072 {_DATA} --dry_run"),
        ("train", f"lrk-train llama-3-8b-131072 {_DATA}"),
        ("go on after an interruption", "lrk-train mine.yaml --resume_from_checkpoint auto"),
        (
            "a file to change and to train by",
            "lrk-train llama-3-8b-131072 --print_preset > mine.yaml",
        ),
        (
            "choose a recipe for a model and a GPU, and write its file",
            f"lrk-train --recipe auto --model_name_or_path MODEL {_DATA} \\\n"
            "      --target_length 131072 --output_dir outputs/mine --gpu h100",
        ),
        ("on 8 GPUs", "torchrun --nproc_per_node 8 -m lrk.train.command mine.yaml"),
    ],
    epilog="docs/training.md says what a file may hold beside these options.",
)
LOOKS["description"] += "\n\npresets:\n" + fill(
    " ".join(presets.preset_names()),
    WIDTH,
    initial_indent="  ",
    subsequent_indent="  ",
    break_on_hyphens=False,
)
RUN, TRANSFORMERS = "run", "other options of transformers.TrainingArguments"
SUBJECTS = {
    "model": ModelArguments,
    "data": DataArguments,
    "samples": SampleArguments,
    "positions and RoPE": PositionArguments,
    "loss": LossArguments,
    "teacher": DistillationArguments,
    "LoRA": LoraArguments,
    "memory": MemoryArguments,
    "operations": KernelArguments,
    "several processes": ProcessArguments,
    "evaluation": EvaluationArguments,
    "checkpoints": SavingArguments,
    "dry run": PredictionArguments,
}
COMMON = {
    "output_dir": "folder of the run",
    "dry_run": "check everything, print the plan, and stop",
    "resume_from_checkpoint": "a checkpoint's folder, or auto: the last one of output_dir",
    "overwrite_output_dir": "delete the run that output_dir holds",
    "learning_rate": "its largest value (default: 5e-5)",
    "lr_scheduler_type": "such as constant, linear or cosine (default: linear)",
    "max_steps": "steps to train (default: num_train_epochs)",
    "num_train_epochs": "passes over the samples (default: 1.0)",
    "per_device_train_batch_size": "samples a device and micro-batch (default: 1)",
    "per_device_eval_batch_size": "samples a device and evaluation step (default: 1)",
    "gradient_accumulation_steps": "micro-batches a step (default: 1)",
    "optim": "optimizer, by transformers' name (default: adamw_torch_fused)",
    "bf16": "bf16 autocast (default: where the processor has bf16 arithmetic)",
    "fsdp": "shard the weights over all processes, by FSDP2 (fsdp_config: how)",
    "seed": "of data, positions and adapters (default: 42)",
    "eval_strategy": "when to evaluate on eval_data: no, steps or epoch (default: no)",
    "save_steps": "steps between two checkpoints (default: 500)",
    "save_total_limit": "checkpoints that are kept (default: all)",
    "logging_steps": "steps between two logged losses (default: 1.0)",
    "report_to": "where losses are logged, such as tensorboard or wandb (default: none)",
}
"""What a run is mostly given of transformers' options, in our words, and how it is started."""

_BASH_CONFIGURATIONS = """\
_lrk_configurations() {{
  compgen -W '{words}' -- "$1"
  compgen -f -X '!*.yaml' -- "$1"
  compgen -f -X '!*.yml' -- "$1"
  compgen -d -- "$1"
}}"""
_ZSH_CONFIGURATIONS = """\
_lrk_configurations() {{
  compadd -- {words}
  _files -g '*.y(a|)ml'
}}"""


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
    parser = Parser()
    of_option: dict[str, list[str]] = {}
    for content, where in mappings:
        of_option |= _words(content, where, parser)
    words = [word for words in of_option.values() for word in words]
    words += [underscored(word) for word in options]
    return _nested(parsed(parser, words, parser.keys), parser)


class Parser(HfArgumentParser):
    """One option per argument; those not given are absent, so that the dataclass fills them in.

    Args:
        show_all: whether help has all of transformers' options, and not those of `COMMON` alone.
    """

    def __init__(self, show_all: bool = False) -> None:
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
        self._show_all = show_all
        super().__init__(prog="lrk-train", usage=USAGE, **LOOKS)
        answers = add_answers(self, whole=_to_complete)
        add = answers.add_argument
        add("--help_all", action=_HelpAll, nargs=0, help="show all options of transformers too")
        for name, shown in (
            (presets.LIST, "what each preset is"),
            (presets.PRINT, "that of PRESET"),
        ):
            add(name, action="store_true", default=SUPPRESS, help=f"show {shown}")
        # Before any argument is added, for this is the order of help.
        self._groups = {
            title: self.add_argument_group(title) for title in (RUN, *SUBJECTS, TRANSFORMERS)
        }
        self._add_dataclass_arguments(LrkTrainingArguments)  # type: ignore[arg-type]

    def add_argument(self, *names: str, **options: Any) -> Action:  # type: ignore[override]
        name = names[0].lstrip("-")
        if name == "kernels":
            for kernel in KERNELS:
                help = f"run the lrk operation {kernel}"
                kind = _text_or_truth if kernel == ATTENTION else string_to_bool
                help += f", or one of {', '.join(BACKENDS)}" if kernel == ATTENTION else ""
                action = self.add_argument(f"--kernels.{kernel}", type=kind, help=help)
            return action
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
        if argument in COMMON:
            options["help"] = COMMON[argument]
        elif argument in self.ours and options.get("default") not in (None, [], False):
            options["help"] += f" (default: {options['default']})"
        options |= {"default": SUPPRESS, "required": False}
        if argument in COMMON and options.get("choices"):
            options["metavar"] = "TEXT"  # their list is long
        group = _group_of(argument)
        if name.startswith("no_") or (group == TRANSFORMERS and not self._show_all):
            options["help"] = SUPPRESS
        # The form with hyphens is not needed beside it: hyphens become underscores beforehand.
        return self._groups[group].add_argument(names[0], **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class _HelpAll(Action):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"default": SUPPRESS})

    def __call__(self, parser: ArgumentParser, *_: Any) -> None:
        Parser(show_all=True).print_help()
        parser.exit()


def _group_of(argument: str) -> str:
    """The title of an argument's group in help."""
    for title, subject in SUBJECTS.items():
        if argument in subject.__annotations__:
            return title
    of_transformers = argument in {item.name for item in fields(TrainingArguments)}
    return TRANSFORMERS if of_transformers and argument not in COMMON else RUN


def _to_complete() -> Parser:
    """The parser with what completion needs beside it: what may stand in place of an option."""
    parser = Parser(show_all=True)
    configuration = argparse.ArgumentParser.add_argument(
        parser, "configuration", nargs="?", help="a preset, or a YAML file"
    )
    words = " ".join(presets.preset_names())
    configuration.complete = {  # type: ignore[attr-defined]
        "bash": "_lrk_configurations",
        "zsh": "_lrk_configurations",
        "preamble": {
            "bash": _BASH_CONFIGURATIONS.format(words=words),
            "zsh": _ZSH_CONFIGURATIONS.format(words=words),
        },
    }
    return parser


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
        return typed(read_text(text))
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no mapping: {error}") from error


def _text_or_truth(text: str) -> str | bool:
    try:
        return string_to_bool(text)
    except ArgumentTypeError:
        return text


def _words(content: Mapping[str, Any], where: str, parser: Parser) -> dict[str, list[str]]:
    """The words of each option; none for an empty value, which means the default."""
    known = [key.lstrip("-") for key in parser.keys]
    words: dict[str, list[str]] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name == "kernels" and isinstance(value, dict):
            pairs = {f"kernels.{kernel}": choice for kernel, choice in value.items()}
        elif name == "kernels" and isinstance(value, str) and value in NULLS:
            pairs = {}
        else:
            pairs = {name: value}
        for option, choice in pairs.items():
            if option not in known:
                near = did_you_mean(option, [*known, STAGES])
                raise ValueError(f"unknown key {option!r} in {where}{near}")
            words[option] = option_words(option, choice, option in parser.lists)
    return words


def _nested(values: dict[str, Any], parser: Parser) -> dict[str, Any]:
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
