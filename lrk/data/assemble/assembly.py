"""An assembly, from its first check to the manifest."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.data.assemble.arguments import Assembly
from lrk.data.assemble.audit import Verdict, is_audited, read_verdicts, write_verdicts
from lrk.data.assemble.bm25 import check_installed
from lrk.data.assemble.corpus import Corpus, Units, read_corpus
from lrk.data.assemble.parts import Layout, Plan
from lrk.data.assemble.planner import planner_of
from lrk.data.assemble.verification import Losses, ModelLosses, Verification
from lrk.data.shards import (
    Columns,
    begin,
    check_free,
    make_missing,
    remove_damaged,
    seal,
    shard_path,
    versions,
)
from lrk.pretrained import check_device, default_device
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.recipe.prepared import (
    MANIFEST_FILE,
    Manifest,
    open_prepared,
    read_manifest,
    sha256_of,
)
from lrk.recipe.segments import SentenceEnds, segment_lengths, sentence_ends
from lrk.recipe.tokens import FEATURES
from lrk.share import Share, at_work
from lrk.versions import installed_version


def assemble(
    assembly: Assembly,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    share: Share | None = None,
    num_proc: int = 1,
    device: str | None = None,
    losses: Losses | None = None,
) -> Manifest | None:
    """Write what is missing of a folder of assembled samples.

    One process reads the documents, indexes them and plans the samples, whatever its share; shards
    are made, and verified, by `num_proc` processes. What a shard holds depends neither on them nor
    on `share`.

    Args:
        device: of the model that verifies; the accelerator if there is one.
        losses: what verification asks; those of its model, by default.

    Returns:
        The complete manifest, or None if other shares are still missing.

    Raises:
        ValueError: for data that are not prepared, are conversations or do not fill one sample; a
            model that cannot verify, or verifies none; or a folder that was begun with other
            arguments.
        atomic.SaveError: if a shard cannot be written.
    """
    check_installed()
    folder, share = Path(output_dir).expanduser(), share or Share()
    ends = sentence_ends(tokenizer)
    wanted = _manifest(assembly, tokenizer)
    check_free(folder, wanted)
    inputs: dict[str, int | str] = {}
    if assembly.verification is not None and losses is None:
        device = device or default_device()
        check_device(device)
        losses = ModelLosses(assembly.verification, device)
        inputs["verify_model"] = assembly.verification.check_model(
            tokenizer, assembly.target_length
        )
    documents = _documents(assembly.data, tokenizer)
    folders = [Path(source).expanduser() for source in assembly.data]
    for source, path in zip(assembly.data, folders, strict=True):
        inputs[source] = sha256_of(path / MANIFEST_FILE)
    layout = Layout.of(tokenizer)
    corpus = read_corpus(documents, layout, assembly.chunk_size)
    planner = planner_of(assembly, documents, corpus, layout, len(tokenizer))
    plans = planner.plans()
    first = next(plans, None)
    if first is None:
        raise ValueError(
            f"no document of {', '.join(map(repr, assembly.data))} fills a sample of "
            f"target_length {assembly.target_length:,} with what the others hold"
        )
    with at_work(folder, share):
        manifest = begin(folder, replace(wanted, inputs=inputs))
        for shard in folder.glob("documents-*.arrow"):
            if not is_audited(shard):
                shard.unlink()
        if manifest.shards is not None and not remove_damaged(folder, manifest):
            return manifest
        make = partial(
            _columns,
            # Its parts are the index's; each task brings its own, and goes to another process.
            units=replace(planner.units, parts=[]),
            layout=layout,
            ends=ends,
            bounds=_bounds(folders),
            verification=assembly.verification,
            losses=losses,
        )
        size = max(assembly.shard_tokens // assembly.target_length, 1)
        tasks = _Numbered(folder, chain([first], plans), size)
        features = Features({**FEATURES, "source": Value("int32")})
        make_missing(folder, tasks, make, features, share, num_proc)
        shards = [shard_path(folder, number) for number in range(tasks.shards)]
        if manifest.shards is None and all(shard.exists() for shard in shards):
            manifest = replace(manifest, summary=_summary(shards, corpus, assembly))
        return seal(folder, manifest, tasks.shards, _no_totals)


def read_gains(folder: Path, manifest: Manifest) -> list[tuple[float, bool]]:
    """Of each sample that was verified its gain, and whether it was kept."""
    return [
        (verdict.gain, verdict.kept)
        for shard in manifest.shards or []
        for verdict in read_verdicts(folder / shard.file)
        if verdict.gain is not None
    ]


class _Numbered:
    """Plans a shard at a time, with the shard's path and number, and how many shards they were."""

    def __init__(self, folder: Path, plans: Iterator[Plan], size: int) -> None:
        self._folder = folder
        self._plans = plans
        self._size = size
        self.shards = 0

    def __iter__(self) -> Iterator[tuple[int, tuple[Path, list[Plan]]]]:
        while plans := list(islice(self._plans, self._size)):
            number = self.shards
            self.shards += 1
            yield number, (shard_path(self._folder, number), plans)


def _documents(data: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    documents = open_prepared(data, tokenizer)
    if "is_label" in documents.column_names:
        raise ValueError(
            f"data {', '.join(map(repr, data))} holds conversations; only texts are assembled"
        )
    return documents


def _bounds(folders: Sequence[Path]) -> NDArray[np.int64]:
    """The number of the first document behind each folder."""
    return np.cumsum([(read_manifest(folder).summary or {})["documents"] for folder in folders])


def _columns(
    task: tuple[Path, list[Plan]],
    units: Units,
    layout: Layout,
    ends: SentenceEnds,
    bounds: NDArray[np.int64],
    verification: Verification | None,
    losses: Losses | None,
) -> Iterator[Columns]:
    """The samples of a shard that are kept; then its audit, before the shard gets its name."""
    shard, plans = task
    verdicts = []
    for parts, scored in plans:
        ids = layout.join([units.ids(part) for part in parts])
        gain = None
        if verification is not None and losses is not None:
            mask = np.zeros(len(ids), bool)
            for place, counts in zip(layout.places(parts), scored, strict=True):
                mask[place] = counts
            gain = verification.gain(ids, mask, losses)
        kept = gain is None or verification is None or gain >= verification.min_gain
        verdicts.append(Verdict(parts, gain, kept))
        if kept:
            source = int(np.searchsorted(bounds, parts[0].document, side="right"))
            yield {
                "input_ids": [ids],
                "segment_lengths": [segment_lengths(ids, ends)],
                "source": [source],
            }
    write_verdicts(shard, verdicts)


def _summary(shards: Sequence[Path], corpus: Corpus, assembly: Assembly) -> dict[str, int]:
    """Counts of all shards.

    Raises:
        ValueError: if verification has kept no sample.
    """
    verdicts = [verdict for shard in shards for verdict in read_verdicts(shard)]
    kept = [verdict.parts for verdict in verdicts if verdict.kept]
    if not kept:
        best = max(verdict.gain for verdict in verdicts if verdict.gain is not None)
        assert assembly.verification is not None
        raise ValueError(
            f"none of {len(verdicts):,} samples gains min_gain {assembly.verification.min_gain:g} "
            f"nats a token, the best one {best:.4f}: choose a lower one and another output_dir"
        )
    return {
        "documents_read": corpus.num_documents,
        "duplicates": corpus.duplicates,
        "assembled": len(verdicts),
        "parts": sum(map(len, kept)),
        "documents_used": len({part.document for parts in kept for part in parts}),
    }


def _manifest(assembly: Assembly, tokenizer: PreTrainedTokenizerBase) -> Manifest:
    # All names are always there, so that a run without a model is another one too.
    verification = assembly.verification and vars(assembly.verification)
    return Manifest(
        command="assemble",
        arguments={
            **{name: value for name, value in vars(assembly).items() if name != "verification"},
            **{
                item.metadata["argument"]: verification and verification[item.name]
                for item in fields(Verification)
            },
            "tokenizer": tokenizer.name_or_path,
        },
        tokenizer=tokenizer_fingerprint(tokenizer),
        inputs={},
        sources=assembly.data,
        versions={**versions(), "bm25s": installed_version("bm25s") or "not installed"},
    )


def _no_totals(documents: Dataset) -> dict[str, int]:
    return {}
