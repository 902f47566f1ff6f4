"""The `lrk-data` command."""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from typing import Any, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.hf_argparser import string_to_bool

from lrk.command import RunError, run_command
from lrk.command_line import CommandParser, add_answers, looks, underscored
from lrk.data.prepare import SHARD_CHARACTERS, Preparation, prepare
from lrk.data.select import SUMMARY, SelectionRun, report, select
from lrk.pretrained import load_auto
from lrk.recipe.prepared import MANIFEST_FILE, Manifest
from lrk.recipe.selection import RULES
from lrk.share import Share
from lrk.train.arguments import TRAIN_SHARE


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-data {prepare,assemble,select,analyze,rope} --KEY VALUE ...`.

    Returns:
        As `run_command`.
    """
    words = [underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    return run_command(
        "lrk-data",
        lambda: _run(words),
        "run the command again, and it goes on with the shards that are missing",
    )


def _run(words: list[str]) -> int:
    namespace = parser(words[0] if words else "").parse_args(words)
    try:
        return namespace.run(namespace)
    except BrokenProcessPool as error:
        raise RunError(
            "one of num_proc processes was killed, for lack of memory perhaps; run the command "
            "again with fewer, the shards that are complete stay"
        ) from error


def parser(command: str | None = None) -> CommandParser:
    """The parser of all subcommands, of which `command` alone has its options; None for all.

    What analyses, searches or assembles is slow to import, and needed by itself alone.
    """
    parser = CommandParser(prog="lrk-data", usage="lrk-data COMMAND --KEY VALUE ...", **LOOKS)
    add_answers(parser, whole=_whole)
    # The group's own title, so that Python does not name it after what is positional.
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for name, subject in _COMMANDS.items():
        added = commands.add_parser(
            name,
            help=subject.what,
            prog=f"lrk-data {name}",
            usage=f"lrk-data {name} --KEY VALUE ...",
            **looks(f"{subject.what[0].upper()}{subject.what[1:]}.", subject.examples),
        )
        add_answers(added, whole=_whole)
        if command in (None, name):
            subject.add(added)
    return parser


def _whole() -> CommandParser:
    return parser()


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    from lrk.analysis import command as analysis

    analysis.add_arguments(parser)
    parser.set_defaults(run=analysis.run)


def _add_rope(parser: argparse.ArgumentParser) -> None:
    from lrk.longrope import command as longrope

    longrope.add_arguments(parser)
    parser.set_defaults(run=longrope.run)


def _add_assemble(parser: argparse.ArgumentParser) -> None:
    from lrk.data.assemble import command as assembly

    assembly.add_arguments(parser)
    _add_common(parser)
    parser.set_defaults(run=_assemble)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("documents").add_argument
    add("--data", nargs="+", required=True, help="files, folders, patterns or hub:OWNER/NAME")
    add("--text_column", default="text", help="column with the text (default: text)")
    add(
        "--assistant_only",
        type=string_to_bool,
        default=True,
        help="of conversations, train on the assistant's turns or the completions (default: true)",
    )
    add(
        "--split_special_tokens",
        type=string_to_bool,
        default=True,
        help="what reads like a special token in a text is text (default: true)",
    )
    add(
        "--shard_characters",
        type=int,
        default=SHARD_CHARACTERS,
        help=f"characters of text in a shard (default: {SHARD_CHARACTERS})",
    )
    _add_common(parser)
    parser.set_defaults(run=_prepare)


def _add_select(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("selection").add_argument
    add("--data", required=True, help="a folder that lrk-data prepare wrote")
    add(
        "--selection",
        default="impactful",
        help=f"one of {', '.join(RULES)} (default: impactful)",
    )
    add("--impactful_tokens", help="table of lrk-data analyze, for selection impactful")
    add("--target_length", type=int, default=131_072, help="window to reach (default: 131072)")
    add("--train_length", type=int, help=f"tokens of a sample (default: {TRAIN_SHARE} x target)")
    add("--seed", type=int, default=42, help="of the draws (default: 42)")
    _add_common(parser)
    parser.set_defaults(run=_select)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("tokens and shards").add_argument
    add("--tokenizer", required=True, help="folder or hub name of the model or its tokenizer")
    add("--gguf_file", help="GGUF file in that folder")
    add("--output_dir", required=True, help="folder for the shards and their manifest")
    add("--shard", type=_share, default=Share(), metavar="I/N", help="make every N-th shard alone")
    add("--num_proc", type=int, default=1, help="processes (default: 1)")


class _Command(NamedTuple):
    what: str
    add: Callable[[argparse.ArgumentParser], None]
    examples: list[tuple[str, str]]


_COMMANDS = {
    "prepare": _Command(
        "tokenize documents once, into memory-mapped shards",
        _add_prepare,
        [
            (
                "books and a folder of code, in 8 processes",
                "lrk-data prepare --data 'books/*.jsonl' code/ \\\n"
                "      --tokenizer MODEL --output_dir prepared --num_proc 8",
            ),
            ("train on what is prepared", "lrk-train llama-3-8b-131072 --data prepared"),
        ],
    ),
    "assemble": _Command(
        "make long samples of short prepared documents",
        _add_assemble,
        [
            (
                "neighbours by BM25, in samples of 131,072 tokens",
                "lrk-data assemble --data prepared --method neighbours \\\n"
                "      --tokenizer MODEL --output_dir assembled",
            ),
        ],
    ),
    "select": _Command(
        "choose the text of samples from prepared documents",
        _add_select,
        [
            (
                "sentences with impactful tokens, as LongRecipe chooses them",
                "lrk-data select --data prepared --tokenizer MODEL \\\n"
                "      --impactful_tokens analysis/impactful.json --output_dir selected",
            ),
        ],
    ),
    "analyze": _Command(
        "find the token types that gain from a longer window",
        _add_analyze,
        [
            (
                "by a model and one that was briefly extended",
                "lrk-data analyze --model MODEL --extended MODEL-16k \\\n"
                "      --data 'books/*.txt' --output_dir analysis",
            ),
            (
                "by one model on short contexts and on long ones",
                "lrk-data analyze --model MODEL --data 'books/*.txt' --output_dir analysis",
            ),
        ],
    ),
    "rope": _Command(
        "find RoPE factors by the loss of long needle samples",
        _add_rope,
        [
            (
                "for 131,072 tokens",
                "lrk-data rope --model MODEL --target_length 131072 --output_dir factors",
            ),
            (
                "train with what was found",
                "lrk-train mine.yaml --rope_scaling longrope \\\n"
                "      --rope_factors factors/rope_factors.json",
            ),
        ],
    ),
}
LOOKS = looks(
    "Prepare what lrk-train reads: token ids, long samples, tables of tokens, RoPE\n"
    "factors. 'lrk-data COMMAND --help' has the options of a command.",
    [each for subject in _COMMANDS.values() for each in subject.examples[:1]],
)


def _share(text: str) -> Share:
    try:
        return Share.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _prepare(namespace: argparse.Namespace) -> int:
    preparation = Preparation(**_fields_of(Preparation, namespace))
    manifest = prepare(preparation, *_common(namespace))
    if manifest is None:
        return _unfinished(namespace)
    summary = _summary(namespace.output_dir, manifest, ("documents_read", "documents", "tokens"))
    print(
        f"{namespace.output_dir}: {summary['documents']:,} documents, {summary['tokens']:,} "
        f"tokens, {len(manifest.shards or [])} shards; "
        f"{summary['documents_read'] - summary['documents']:,} documents without text are left out"
    )
    return 0


def _select(namespace: argparse.Namespace) -> int:
    if namespace.train_length is None:
        namespace.train_length = round(TRAIN_SHARE * namespace.target_length)
    manifest = select(SelectionRun(**_fields_of(SelectionRun, namespace)), *_common(namespace))
    if manifest is None:
        return _unfinished(namespace)
    print(report(_summary(namespace.output_dir, manifest, SUMMARY)))
    return 0


def _assemble(namespace: argparse.Namespace) -> int:
    from lrk.data.assemble import assemble
    from lrk.data.assemble import command as assembly

    asked = assembly.assembly_of(namespace)
    manifest = assemble(asked, *_common(namespace), namespace.device)
    if manifest is None:
        return _unfinished(namespace)
    names = ("documents", "tokens", *assembly.COUNTS)
    summary = _summary(namespace.output_dir, manifest, names)
    print(assembly.report(namespace.output_dir, manifest, summary))
    return 0


def _common(namespace: argparse.Namespace) -> tuple[PreTrainedTokenizerBase, str, Share, int]:
    if namespace.num_proc < 1:
        raise ValueError(f"num_proc is {namespace.num_proc}; it must be at least 1")
    tokenizer = load_auto(AutoTokenizer, "tokenizer", namespace.tokenizer, namespace.gguf_file)
    return tokenizer, namespace.output_dir, namespace.shard, namespace.num_proc


def _fields_of(kind: Any, namespace: argparse.Namespace) -> dict[str, Any]:
    return {item.name: getattr(namespace, item.name) for item in fields(kind)}


def _summary(folder: str, manifest: Manifest, names: Sequence[str]) -> dict[str, int]:
    """The counts of a manifest, which may have been there before."""
    summary = dict(manifest.summary or {})
    for name in names:
        value = summary.get(name)
        if type(value) is not int or value < 0:
            raise ValueError(
                f"{MANIFEST_FILE} of {folder!r} is damaged: summary has {value!r} {name}"
            )
    return summary


def _unfinished(namespace: argparse.Namespace) -> int:
    print(
        f"{namespace.output_dir}: the shards of {namespace.shard} "
        "are there; when all are, run the command once more to complete the manifest"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
