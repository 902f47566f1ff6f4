"""Mutated and odd data: the right documents, or one sentence that names the file.

    python -m pytest -m slow tests/fuzz/test_data_files.py -s

A seed makes one case: a folder with a name, data files of one kind, and what is done to one of
them. Where nothing was done, the documents are known, and compared.
"""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pytest
from transformers import PreTrainedTokenizerFast

from lrk.data.command import main
from lrk.recipe import load_documents, stream_documents
from lrk.recipe.prepared import open_prepared
from studies.tiny import prose, train_tokenizer
from tests.fuzz import outcome
from tests.fuzz.mutation import damaged, damaged_json

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("datasets_cache")]

SECONDS = 75
NAMES = [
    "a",
    "b [1965]",
    "c?",
    "d*",
    "e{1,2}",
    "f::g",
    "h i",
    "ü",
    "x'y",
    'x"y',
    "%20",
    "#",
    "~",
    "$HOME",
]
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<end>\n{% endfor %}"


class Case(NamedTuple):
    """A source, and its documents where they are known."""

    source: str
    file: Path
    documents: list[str] | None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    made = train_tokenizer([prose(200, 0)], 320)
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def texts_of(generator: random.Random) -> list[str]:
    odd = ["", " ", "\ufeff", "<end>", "\0", "山口关闭了", "a" * 5000, "\r\n\r", "\u2028", "🙂"]
    return [
        prose(generator.randint(1, 8), generator.randint(0, 9**9))
        + generator.choice(["", "", generator.choice(odd)])
        for _ in range(generator.randint(1, 12))
    ]


def json_lines(texts: list[str]) -> bytes:
    return "".join(
        json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(texts)
    ).encode()


def arrow(texts: list[str]) -> bytes:
    table = pyarrow.table({"text": texts, "id": range(len(texts))})
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": range(len(texts))}), sink)
    return sink.getvalue()


FORMATS: dict[str, Callable[[list[str]], bytes]] = {
    ".jsonl": json_lines,
    ".json": lambda texts: json.dumps([{"text": text} for text in texts]).encode(),
    ".arrow": arrow,
    ".parquet": parquet,
    ".txt": lambda texts: texts[0].encode(),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}
ODD_ROWS: list[Any] = [
    {},
    {"text": None},
    {"text": 1},
    {"text": ["a"]},
    {"text": "\ud800"},
    {"id": 1},
    {"messages": None},
    {"messages": []},
    {"messages": "Who?"},
    {"messages": [{}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    {"messages": [{"role": 1, "content": {"a": "\udfff"}}]},
    {"prompt": "a", "completion": None},
    {"prompt": "a", "completion": "b", "text": None},
    {"prompt": ["a"], "completion": ["b"]},
    [],
    "text",
    None,
    float("nan"),
    10**400,
]


def odd_json(generator: random.Random, texts: list[str]) -> bytes:
    rows = [{"text": text} for text in texts]
    for _ in range(generator.randint(1, 3)):
        rows.insert(generator.randrange(len(rows) + 1), generator.choice(ODD_ROWS))
    if generator.random() < 0.3:
        rows = generator.sample(ODD_ROWS, generator.randint(1, 4))
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    encoding = generator.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32-le"])
    return content.decode().encode(encoding)


def case_of(seed: int, root: Path) -> Case:
    """Files of one format, of which one may be mutated."""
    generator = random.Random(seed)
    folder = root / generator.choice(NAMES)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    suffix, pack = generator.choice(list(FORMATS)), generator.choice(["", "", *COMPRESSIONS])
    known: dict[Path, list[str]] = {}
    for name in generator.sample(NAMES, generator.randint(1, 3)):
        texts = texts_of(generator)
        if suffix == ".txt":
            texts = [texts[0].replace("\0", "")]
        path = folder / f"{name}{suffix}{pack}"
        path.write_bytes(COMPRESSIONS[pack](FORMATS[suffix](texts)))
        newlines = [re.sub("\r\n?", "\n", text).removeprefix("\ufeff") for text in texts]
        known[path] = newlines if suffix == ".txt" else texts
    file = generator.choice(list(known))
    harm = generator.randrange(4)
    if harm == 1:
        file.write_bytes(damaged(generator, file.read_bytes()))
    elif harm == 2:
        file.write_bytes(COMPRESSIONS[pack](damaged(generator, FORMATS[suffix](known[file]))))
    elif harm == 3 and suffix.startswith(".json"):
        file.write_bytes(COMPRESSIONS[pack](odd_json(generator, known[file])))
    documents = [text for path in sorted(known) for text in known[path]] if harm == 0 else None
    source = folder if generator.random() < 0.7 or len(known) > 1 else file
    return Case(str(source), file, documents)


def judged(case: Case, found: outcome.Outcome) -> outcome.Outcome:
    """A sentence has to name the file, or its folder where it is about all of them."""
    named = any(repr(str(name))[1:-1] in found.text for name in (case.file, case.source))
    if found.kind == outcome.SENTENCE and not named:
        return outcome.Outcome(outcome.FAULT, f"no file is named: {found.text}")
    if found.kind == outcome.SENTENCE and case.documents is not None and any(case.documents):
        return outcome.Outcome(outcome.FAULT, f"right data are refused: {found.text}")
    return found


def seeds(seconds: float) -> Iterator[int]:
    """From 0 on, for so long."""
    end = time.monotonic() + seconds
    seed = 0
    while time.monotonic() < end:
        yield seed
        seed += 1


def test_documents(tmp_path, tokenizer):
    """`load_documents` and `stream_documents` agree, and make of untouched files what they hold."""

    def read(case: Case) -> None:
        loaded = load_documents([case.source])
        streamed = list(stream_documents([case.source]))
        if loaded.column_names == ["text"]:
            texts = loaded["text"][:]
            assert texts == [document.get("text") for document in streamed]
            assert case.documents is None or texts == case.documents
        else:
            assert [json.loads(row or "{}") for row in loaded["conversation"]] == streamed

    outcomes = []
    for seed in seeds(SECONDS):
        case = case_of(seed, tmp_path / "data")
        outcomes.append((seed, judged(case, outcome.of_call(lambda case=case: read(case)))))
        shutil.rmtree(tmp_path / "datasets-cache", ignore_errors=True)
    outcome.judge(outcomes)


def test_prepare_and_select(tmp_path, tokenizer):
    """The commands, over the same cases, and over folders whose files were mutated after that."""
    outcomes = []
    for seed in seeds(SECONDS):
        generator = random.Random(seed)
        out, selected = tmp_path / "out", tmp_path / "selected"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(selected, ignore_errors=True)
        case = case_of(seed, tmp_path / "data")
        tokens = ["--tokenizer", tokenizer.name_or_path]
        prepare = ["prepare", "--data", case.source, *tokens, "--output_dir", str(out)]
        prepare += ["--shard_characters", generator.choice(["300", "3000"])]
        found = judged(case, outcome.of_command(main, prepare))
        outcomes.append((seed, found))
        if found.kind != outcome.RIGHT:
            continue
        count = len(open_prepared([str(out)], tokenizer))
        if case.documents is not None:
            assert count == sum(bool(text.strip()) for text in case.documents), seed
        victim = generator.choice([out / "manifest.json", *sorted(out.glob("[!.]*"))])
        if generator.random() < 0.7:
            is_json = victim.suffix == ".json" and generator.random() < 0.8
            harm = damaged_json if is_json else damaged
            victim.write_bytes(harm(generator, victim.read_bytes()))
        select = ["select", "--data", str(out), *tokens, "--output_dir", str(selected)]
        select += ["--selection", "random", "--target_length", "60", "--train_length", "20"]
        harmed = Case(str(out), victim, None)
        outcomes.append((seed, judged(harmed, outcome.of_command(main, select))))
        again = outcome.of_command(main, prepare)
        outcomes.append((seed, judged(harmed, again)))
        if again.kind == outcome.RIGHT:
            assert len(open_prepared([str(out)], tokenizer)) == count, seed
    outcome.judge(outcomes)
