"""The `lrk-data` command."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from typing import Any, NoReturn

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.hf_argparser import string_to_bool

from lrk.command import RunError, run_command
from lrk.data.prepare import SHARD_CHARACTERS, Preparation, prepare
from lrk.data.select import SUMMARY, SelectionRun, report, select
from lrk.pretrained import load_auto
from lrk.recipe.prepared import MANIFEST_FILE, Manifest
from lrk.recipe.selection import RULES
from lrk.share import Share
from lrk.train.arguments import TRAIN_SHARE
from lrk.train.parser import underscored


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
    namespace = _parser(words[:1]).parse_args(words)
    try:
        return namespace.run(namespace)
    except BrokenProcessPool as error:
        raise RunError(
            "one of num_proc processes was killed, for lack of memory perhaps; run the command "
            "again with fewer, the shards that are complete stay"
        ) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser(command: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="lrk-data", description="Prepare what lrk-train reads.")
    commands = parser.add_subparsers(dest="command", required=True)
    analyze = _add(commands, "analyze", "find the token types that gain from a longer window")
    if list(command) == ["analyze"]:
        from lrk.analysis import command as analysis  # slow to import, and only needed here

        analysis.add_arguments(analyze)
        analyze.set_defaults(run=analysis.run)
    rope = _add(commands, "rope", "find RoPE factors by the loss of long needle samples")
    if list(command) == ["rope"]:
        from lrk.longrope import command as longrope  # as above

        longrope.add_arguments(rope)
        rope.set_defaults(run=longrope.run)
    assemble = _add(commands, "assemble", "prepared short documents to long samples")
    if list(command) == ["assemble"]:
        from lrk.data.assemble import command as assembly  # as above

        assembly.add_arguments(assemble)
        _add_common(assemble)
        assemble.set_defaults(run=_assemble)
    _add_prepare(_add(commands, "prepare", "documents to token ids, in shards"))
    _add_select(_add(commands, "select", "prepared documents to the text of samples"))
    return parser


def _add(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=help, description=help, allow_abbrev=False)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
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
    add = parser.add_argument
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
    add = parser.add_argument
    add("--tokenizer", required=True, help="folder or hub name of the model or its tokenizer")
    add("--gguf_file", help="GGUF file in that folder")
    add("--output_dir", required=True, help="folder for the shards and their manifest")
    add("--shard", type=_share, default=Share(), metavar="I/N", help="make every N-th shard alone")
    add("--num_proc", type=int, default=1, help="processes (default: 1)")


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
