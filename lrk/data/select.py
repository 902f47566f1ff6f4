"""`lrk-data select`: prepared documents become the text of samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.data.shards import (
    Columns,
    begin,
    check_free,
    make_missing,
    remove_damaged,
    seal,
    versions,
)
from lrk.field_types import check_types
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.recipe.prepared import MANIFEST_FILE, Manifest, open_prepared, read_manifest, sha256_of
from lrk.recipe.samples import check_length, choice_of
from lrk.recipe.selection import POSITIONS, Selection, selection_of
from lrk.share import Share, at_work

# Beside the tokens: how many the row was chosen from, and from the first to the last one kept; how
# many of them stood in sentences that qualify, and how many kept ones did not.
COUNTS = ("chosen_from", "covered", "qualifying", "filled")
SUMMARY = (*COUNTS, "documents", "tokens", "samples", "kept")


@dataclass(frozen=True)
class SelectionRun:
    """What the content of a folder of selected text follows from.

    Attributes:
        data: a prepared folder.
        target_length, train_length: `Lt` and `Ls`, as in `lrk-train`.
        selection: one of `selection.RULES`.
        impactful_tokens: path of the table, for the rule `impactful`.
        seed: of the draws; that of the training run gives the same text as selecting on the fly.
    """

    data: str
    target_length: int
    train_length: int
    selection: str = "impactful"
    impactful_tokens: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        check_types(self)
        if self.selection == POSITIONS:
            raise ValueError(
                "selection 'positions' depends on the positions that training draws in each epoch; "
                "give it to lrk-train"
            )


def select(
    run: SelectionRun,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    share: Share | None = None,
    num_proc: int = 1,
) -> Manifest | None:
    """Write what is missing of a folder of selected text, one shard for each shard of `data`.

    A document is cut at multiples of `target_length`. Each stretch of more than `train_length`
    tokens gives a row of exactly `train_length`; a shorter one is a row as it is, for `lrk-train`
    to pack.

    Returns, Raises:
        As `prepare`; ValueError also if `data` are not prepared, or damaged.
    """
    folder, share = Path(output_dir).expanduser(), share or Share()
    selection = selection_of(
        run.selection, run.target_length, tokenizer, run.impactful_tokens, run.seed
    )
    assert selection is not None
    check_length(run.train_length, selection)
    source = Path(run.data).expanduser()
    documents = open_prepared([run.data], tokenizer)
    shards = read_manifest(source).shards or []
    wanted = _manifest(run, tokenizer)
    check_free(folder, wanted)
    counts = {name: Value("int32") for name in COUNTS}
    firsts = accumulate((shard.documents for shard in shards), initial=0)
    tasks = [
        (number, (source / shard.file, first))
        for number, (shard, first) in enumerate(zip(shards, firsts, strict=False))
    ]
    make = partial(_columns, length=run.train_length, selection=selection)
    features = Features({**documents.features, **counts})
    with at_work(folder, share):
        manifest = begin(folder, wanted)
        if manifest.shards is not None and not remove_damaged(folder, manifest):
            return manifest
        make_missing(folder, tasks, make, features, share, num_proc)
        return seal(folder, manifest, len(shards), partial(_totals, length=run.train_length))


def report(summary: dict[str, int]) -> str:
    """The summary of a folder of selected text, in words."""
    read, kept = summary["chosen_from"], summary["kept"]
    lines = [f"{summary['documents']:,} rows, {summary['tokens']:,} tokens"]
    if summary["samples"] and kept and read:
        lines += [
            f"{summary['samples']:,} samples of {kept // summary['samples']:,} tokens: "
            f"{kept / read:.1%} of {read:,} tokens are kept",
            f"{summary['qualifying'] / read:.1%} of these tokens stand in sentences that qualify; "
            f"{summary['filled'] / kept:.1%} of the kept ones stand in others, to fill up",
            f"from its first to its last token a sample covers {summary['covered'] / read:.1%} of "
            "its stretch",
        ]
    short = summary["documents"] - summary["samples"]
    lines.append(f"{short:,} rows are shorter than a sample and kept whole, to be packed")
    return "\n".join(lines)


def _columns(task: tuple[Path, int], length: int, selection: Selection) -> Iterator[Columns]:
    path, first = task
    for number, document in enumerate(Dataset.from_file(str(path)).with_format("numpy"), first):
        rows = list(_rows(document, number, length, selection))
        yield {name: [row[name] for row in rows] for name in rows[0]}


def _rows(
    document: dict[str, NDArray], number: int, length: int, selection: Selection
) -> Iterator[dict[str, Any]]:
    total = len(document["input_ids"])
    tokens = {name: document[name] for name in ("input_ids", "is_label") if name in document}
    for start in range(0, total, selection.span):
        size = min(selection.span, total - start)
        choice = choice_of(document, number, start, size, length, selection)
        yield {
            **{name: values[start + choice.tokens] for name, values in tokens.items()},
            "segment_lengths": choice.segment_lengths,
            "source": document["source"],
            "chosen_from": size,
            "covered": int(choice.tokens[-1] - choice.tokens[0]) + 1,
            "qualifying": choice.num_qualifying,
            "filled": choice.num_filled,
        }


def _totals(documents: Dataset, length: int) -> dict[str, int]:
    """The sums of `COUNTS` over the rows that were chosen, and their rows and tokens."""
    table = documents.select_columns(list(COUNTS)).with_format("numpy")[:]
    chosen = table["chosen_from"] > length
    sums = {name: int(table[name][chosen].sum(dtype=np.int64)) for name in COUNTS}
    return {**sums, "samples": int(chosen.sum()), "kept": int(chosen.sum()) * length}


def _manifest(run: SelectionRun, tokenizer: PreTrainedTokenizerBase) -> Manifest:
    inputs = {"data": sha256_of(Path(run.data).expanduser() / MANIFEST_FILE)}
    if run.impactful_tokens is not None:
        inputs["impactful_tokens"] = sha256_of(Path(run.impactful_tokens).expanduser())
    return Manifest(
        command="select",
        arguments={**vars(run), "tokenizer": tokenizer.name_or_path},
        tokenizer=tokenizer_fingerprint(tokenizer),
        inputs=inputs,
        sources=read_manifest(run.data).sources,
        versions=versions(),
    )
