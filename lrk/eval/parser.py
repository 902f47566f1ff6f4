"""From a YAML file and a command line to arguments, by the rules of `lrk-train`.

Command line beats file beats default; `-` and `_` are the same in a key; values of the file are
read as if they stood on the command line.
"""

from argparse import SUPPRESS, Action
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn, get_origin, get_type_hints

from transformers import HfArgumentParser

from lrk.command_line import add_answers, looks, underscored
from lrk.eval.arguments import EvalArguments
from lrk.train.nearest import did_you_mean
from lrk.train.option_words import option_words, parsed, split_file
from lrk.train.yaml_text import read_mapping


def parse(argv: Sequence[str]) -> EvalArguments:
    """Arguments from `[CONFIG.yaml] [--KEY VALUE ...]`.

    Raises:
        ValueError: in one sentence, for an unknown key (with the nearest known one), a value of
            the wrong type, or a file that is no mapping.
    """
    parser = Parser()
    paths, options = split_file(argv)
    words = [word for path in paths for word in words_of(read_mapping(path), str(path))]
    words += [underscored(word) for word in options]
    return EvalArguments(**parsed(parser, words, parser.keys))


LOOKS = looks(
    "Evaluate how a model reads long contexts. Every cell of the results, a task at a\n"
    "length, is kept as it is finished: the same command goes on where it was.",
    [
        (
            "what would be run, and one example of each prompt",
            "lrk-eval --model outputs/mine --tasks passkey vt --lengths 8192 131072 \\\n"
            "      --output_dir results --dry_run",
        ),
        (
            "retrieval, by length and by depth",
            "lrk-eval --model outputs/mine --tasks passkey niah_single_1 niah_grid \\\n"
            "      --lengths 8192 32768 131072 --output_dir results",
        ),
        (
            "losses on documents of one's own",
            "lrk-eval --model outputs/mine --tasks perplexity loss_by_position \\\n"
            "      --lengths 32768 --data my-documents.jsonl --output_dir results",
        ),
    ],
    epilog="docs/evaluation.md says what each task measures.",
)
SUBJECTS = {
    "run": ("output_dir", "dry_run", "overwrite_output_dir", "shard", "seed", "batch_size"),
    "model": (
        *("model", "tokenizer", "gguf_file", "dtype", "device", "device_map", "patch"),
        "decoding",
    ),
    "tasks": ("tasks", "lengths", "trials", "grid_trials", "depths", "max_new_tokens"),
    "prompts": (
        *("chat_template", "haystack", "needle", "question", "answer"),
        *("words", "squad", "hotpotqa"),
    ),
    "losses": (
        *("data", "text_column", "documents", "document_length", "stride", "position_bins"),
        *("short_context", "short_stride", "key_model"),
    ),
    "short contexts": ("lm_eval_tasks", "lm_eval_folder"),
}


class Parser(HfArgumentParser):
    """One option per argument; those not given are absent, so that the dataclass fills them in."""

    def __init__(self) -> None:
        super().__init__(
            prog="lrk-eval",
            usage="lrk-eval [CONFIG.yaml] [--KEY VALUE ...]",
            **LOOKS,
        )
        self.keys = [f"--{item.name}" for item in fields(EvalArguments)]
        self._defaults_shown = {item.name: item.default for item in fields(EvalArguments)}
        add_answers(self)
        self._groups = {title: self.add_argument_group(title) for title in SUBJECTS}
        self._add_dataclass_arguments(EvalArguments)  # type: ignore[arg-type]

    def add_argument(self, *names: str, **options: Any) -> Action:  # type: ignore[override]
        name = names[0].lstrip("-")
        default = self._defaults_shown.get(name)
        if default not in (None, MISSING, False):
            options["help"] += f" (default: {default})"
        options |= {"default": SUPPRESS, "required": False}
        (group,) = (title for title, subject in SUBJECTS.items() if name in subject)
        # The form with hyphens is not needed beside it: hyphens become underscores beforehand.
        return self._groups[group].add_argument(names[0], **options)

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
