import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lrk.data import Preparation, Share, prepare, shards
from lrk.data.assemble import Assembly, assemble
from lrk.data.assemble.audit import read_verdicts
from lrk.data.assemble.corpus import cut, read_corpus
from lrk.data.assemble.parts import Layout, Part
from lrk.recipe import Samples
from lrk.recipe.prepared import open_prepared, read_manifest
from studies.tiny import prose

LENGTH = 300
TOPICS = ("qxz", "jvk", "123")
METHODS = {"neighbours": {}, "negatives": {"chunk_tokens": 20}}


def contents(folder: Path) -> dict[str, bytes]:
    """Of a folder, less its locks."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*"))}


@pytest.fixture
def prepare_texts(tokenizer, tmp_path) -> Callable[[list[str]], str]:
    def prepared(texts: list[str]) -> str:
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / "texts.jsonl").write_text("".join(lines))
        sources = [str(tmp_path / "texts.jsonl")]
        prepare(Preparation(sources, shard_characters=2000), tokenizer, tmp_path / "prepared")
        return str(tmp_path / "prepared")

    return prepared


@pytest.fixture
def prepared(prepare_texts) -> str:
    return prepare_texts([prose(3 + number % 17, number) for number in range(60)])


@pytest.fixture(params=METHODS)
def assembly(request, prepared) -> Assembly:
    """Of four samples a shard."""
    options = METHODS[request.param]
    return Assembly([prepared], request.param, LENGTH, shard_tokens=4 * LENGTH, **options)


def parts_of(folder: Path) -> list[list[Part]]:
    paths = sorted(folder.glob("documents-*.arrow"))
    return [verdict.parts for path in paths for verdict in read_verdicts(path)]


def topic(seed: int, letters: str) -> str:
    """Words of these letters alone."""
    generator = random.Random(seed)
    words = ("".join(generator.choices(letters, k=3)) for _ in range(24))
    return " ".join(words) + "."


def test_neighbours_are_about_the_same(prepare_texts, tokenizer, tmp_path):
    texts = [topic(number, TOPICS[number % 3]) for number in range(36)]
    prepared = prepare_texts(texts)
    assemble(Assembly([prepared], "neighbours", LENGTH), tokenizer, tmp_path / "out")
    room = Layout.of(tokenizer).room(LENGTH)
    lengths = [len(ids) for ids in open_prepared([prepared], tokenizer)["input_ids"]]
    left = [sum(lengths[number::3]) for number in range(3)]
    pure = 0
    for parts in parts_of(tmp_path / "out"):
        topics = [part.document % 3 for part in parts]
        if left[topics[0]] > room:
            assert set(topics) == {topics[0]}
            pure += 1
        for part in parts:
            left[part.document % 3] -= lengths[part.document]
    assert pure >= 6, "two of each topic"


def test_the_nearest_stands_last(prepare_texts, tokenizer, tmp_path):
    """Whatever opens, its twin but for a word is last."""
    generator = random.Random(0)
    texts = []
    for _ in range(8):
        text = topic(generator.randrange(10**6), "abcdefghijklm")
        texts += [text, text + " it."]
    assembly = Assembly([prepare_texts(texts)], "neighbours", LENGTH, samples=1)
    assemble(assembly, tokenizer, tmp_path / "out")
    (parts,) = parts_of(tmp_path / "out")
    assert parts[0].document // 2 == parts[-1].document // 2
    assert len(parts) > 2


def test_a_sample_is_its_parts(assembly, tokenizer, tmp_path):
    folder = tmp_path / "out"
    manifest = assemble(assembly, tokenizer, folder)
    documents = open_prepared(assembly.data, tokenizer)["input_ids"][:]
    rows = open_prepared([str(folder)], tokenizer)
    blank = tokenizer("\n\n")["input_ids"]
    plans = parts_of(folder)
    assert len(rows) == len(plans) > 8
    for row, parts in zip(rows, plans, strict=True):
        expected: list[int] = []
        for document, start, stop in parts:
            expected += [*(blank if expected else []), *documents[document][start:stop]]
        assert row["input_ids"] == [*expected, tokenizer.eos_token_id]
        assert len(row["input_ids"]) == LENGTH == sum(row["segment_lengths"])
        assert row["input_ids"].count(tokenizer.eos_token_id) == 1
        assert row["source"] == 0
    assert manifest is not None
    assert manifest.summary == {
        "documents": len(plans),
        "assembled": len(plans),
        "tokens": LENGTH * len(plans),
        "parts": sum(map(len, plans)),
        "documents_used": len({part.document for parts in plans for part in parts}),
        "documents_read": 60,
        "duplicates": 0,
    }
    assert manifest.sources == assembly.data


def test_neighbours_take_each_document_once(prepared, tokenizer, tmp_path):
    assemble(Assembly([prepared], "neighbours", LENGTH), tokenizer, tmp_path / "out")
    parts = [part for parts in parts_of(tmp_path / "out") for part in parts]
    assert len({part.document for part in parts}) == len(parts) > 40
    lengths = [len(ids) for ids in open_prepared([prepared], tokenizer)["input_ids"]]
    used = {part.document for part in parts}
    rest = sum(length for number, length in enumerate(lengths) if number not in used)
    assert rest < LENGTH + max(lengths), "no more is left than does not fill a sample"


def test_negatives_stand_between_the_chunks_of_a_document(prepared, tokenizer, tmp_path):
    assembly = Assembly([prepared], "negatives", LENGTH, chunk_tokens=20)
    assemble(assembly, tokenizer, tmp_path / "out")
    documents = open_prepared([prepared], tokenizer)
    corpus = read_corpus(documents, Layout.of(tokenizer), 20)
    chunks = {each[0].document: each for each in corpus.chunks}
    openers = []
    for parts in parts_of(tmp_path / "out"):
        own = [part for part in parts if part.document == parts[0].document]
        assert own == chunks[parts[0].document], "in order, whole, and from the first to the last"
        assert parts[-1] == own[-1]
        places = [number for number, part in enumerate(parts) if part in own]
        assert min(np.diff(places)) > 1, "at least one negative in each gap"
        starts = [(part.document, part.start) for part in parts]
        assert len(set(starts)) == len(starts)
        gaps = [
            sum(part.tokens + 1 for part in parts[first + 1 : last])
            for first, last in pairwise(places)
        ]
        assert max(gaps) - min(gaps) <= 1
        openers.append(parts[0].document)
    assert len(set(openers)) == len(openers) > 5


def test_negatives_are_like_the_chunk_before_them(prepare_texts, tokenizer, tmp_path):
    texts = [topic(number, letters) for number in range(12) for letters in TOPICS]
    both = [topic(90 + number, "qxz") + " " + topic(95 + number, "123") for number in range(3)]
    prepared = prepare_texts(texts + both)
    assembly = Assembly([prepared], "negatives", 600, chunk_tokens=100, samples=30)
    assemble(assembly, tokenizer, tmp_path / "out")
    seen = 0
    for parts in parts_of(tmp_path / "out"):
        if parts[0].document >= len(texts):
            seen += 1
            own = [part for part in parts if part.document == parts[0].document]
            behind_first = parts[1 : parts.index(own[1])]
            topics = [p.document % 3 for p in behind_first if p.document < len(texts)]
            assert topics.count(0) > len(topics) / 2
    assert seen


def test_chunks_end_where_sentences_do(prepared, tokenizer):
    documents = open_prepared([prepared], tokenizer)
    for chunks, row in zip(
        read_corpus(documents, Layout.of(tokenizer), 25).chunks, documents, strict=True
    ):
        ends = np.cumsum(row["segment_lengths"])
        assert chunks[0].start == 0
        assert chunks[-1].stop == len(row["input_ids"]) - 1, "end-of-text aside"
        for one, following in pairwise(chunks):
            assert one.stop == following.start
            assert one.stop in ends
        longest = max(row["segment_lengths"])
        assert max(chunk.tokens for chunk in chunks) <= 25 + 2 * longest


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([100], [(0, 100)]),
        ([10] * 10, [(0, 30), (30, 70), (70, 100)]),
        ([98, 2], [(0, 98), (98, 100)]),
    ],
)
def test_a_text_of_few_segments(lengths, expected):
    assert [part[1:] for part in cut(Part(0, 0, 100), np.array(lengths), 34)] == expected


def test_a_document_that_is_there_twice(prepare_texts, tokenizer, tmp_path):
    texts = [prose(8, number) for number in range(12)]
    prepared = prepare_texts(texts + texts[:5])
    manifest = assemble(Assembly([prepared], "neighbours", 150), tokenizer, tmp_path / "out")
    assert manifest is not None
    assert (manifest.summary or {})["duplicates"] == 5
    used = {part.document for parts in parts_of(tmp_path / "out") for part in parts}
    assert used <= set(range(12))


def test_what_is_long_enough_is_left_alone(prepare_texts, tokenizer, tmp_path):
    prepared = prepare_texts([prose(100, 0), *(prose(8, number) for number in range(1, 12))])
    assemble(Assembly([prepared], "neighbours", 150), tokenizer, tmp_path / "out")
    assert all(part.document for parts in parts_of(tmp_path / "out") for part in parts)


@pytest.mark.parametrize(("samples", "made"), [(2, 2), (None, 13)])
def test_as_many_samples_as_there_are_tokens_for(prepared, tokenizer, tmp_path, samples, made):
    assembly = Assembly([prepared], "negatives", LENGTH, chunk_tokens=20, samples=samples)
    manifest = assemble(assembly, tokenizer, tmp_path / "out")
    assert manifest is not None
    assert (manifest.summary or {})["documents"] == made


def test_the_training_run_reads_it(assembly, prepared, tokenizer, tmp_path):
    assemble(assembly, tokenizer, tmp_path / "out")
    samples = Samples(open_prepared([str(tmp_path / "out")], tokenizer), LENGTH, pack=False)
    assert samples.num_unused_tokens == samples.num_packed == 0
    assert all(len(sample["segment_lengths"]) == 1 for sample in samples), "one document each"
    both = open_prepared([prepared, str(tmp_path / "out")], tokenizer)
    assert len(both) == 60 + len(samples)


def test_the_source_is_the_folder_of_what_opens(prepared, prepare_texts, tokenizer, tmp_path):
    os.rename(prepared, tmp_path / "one")
    two = prepare_texts([prose(9, 1000 + number) for number in range(20)])
    assembly = Assembly([str(tmp_path / "one"), two], "neighbours", LENGTH)
    assemble(assembly, tokenizer, tmp_path / "out")
    sources = open_prepared([str(tmp_path / "out")], tokenizer)["source"][:]
    assert sources == [int(parts[0].document >= 60) for parts in parts_of(tmp_path / "out")]
    assert set(sources) == {0, 1}


def test_shares_and_processes_make_the_same_folder(assembly, tokenizer, tmp_path, monkeypatch):
    """Forked here, because a spawned process imports everything anew, which takes long."""
    assemble(assembly, tokenizer, tmp_path / "whole")
    assert assemble(assembly, tokenizer, tmp_path / "shared", Share(1, 2)) is None
    assemble(assembly, tokenizer, tmp_path / "shared", Share(0, 2))
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr("lrk.data.shards.get_context", lambda method: fork)
    assemble(assembly, tokenizer, tmp_path / "processes", num_proc=2)
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "shared") == contents(tmp_path / "processes") == whole
    assert len(whole) > 6


def test_another_seed_makes_others(prepared, tokenizer, tmp_path):
    for seed in (0, 1):
        assembly = Assembly([prepared], "neighbours", LENGTH, seed=seed)
        assemble(assembly, tokenizer, tmp_path / str(seed))
    assert parts_of(tmp_path / "0") != parts_of(tmp_path / "1")


def killed(assembly, tokenizer, folder, after: int) -> None:
    """Assemble in a process that kills itself when so many files have got their names."""
    replace, done = os.replace, 0

    def counted(*arguments):
        nonlocal done
        replace(*arguments)
        done += 1
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted
    assemble(assembly, tokenizer, folder)


@pytest.mark.parametrize("after", [1, 2, 3, 6], ids=["manifest", "audit", "shard", "later"])
def test_a_killed_run_goes_on(prepared, tokenizer, tmp_path, after):
    assembly = Assembly([prepared], "neighbours", LENGTH, shard_tokens=2 * LENGTH)
    child = multiprocessing.get_context("fork").Process(
        target=killed, args=(assembly, tokenizer, tmp_path / "killed", after)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("documents-*")}
    assert len(made) == (after - 1) // 2
    assemble(assembly, tokenizer, tmp_path / "killed")
    assemble(assembly, tokenizer, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in made.items()), "made once"


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "samples-00001.json").unlink(),
        lambda folder: (folder / "samples-00001.json").write_text("{}"),
        lambda folder: (folder / "documents-00001.arrow").unlink(),
        lambda folder: (folder / "documents-00001.arrow").write_bytes(b"x"),
    ],
    ids=["no audit", "a damaged audit", "no shard", "a damaged shard"],
)
def test_what_is_missing_or_damaged_is_made_again(prepared, tokenizer, tmp_path, harm):
    assembly = Assembly([prepared], "neighbours", LENGTH, shard_tokens=2 * LENGTH)
    assemble(assembly, tokenizer, tmp_path / "out")
    whole = contents(tmp_path / "out")
    harm(tmp_path / "out")
    assert assemble(assembly, tokenizer, tmp_path / "out") == read_manifest(tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_what_is_refused_of_a_folder(prepared, corpus, tokenizer, tmp_path):
    out = tmp_path / "out"
    assemble(Assembly([prepared], "neighbours", LENGTH), tokenizer, out)
    with pytest.raises(ValueError, match="was begun with seed 42, which is now 1; choose another"):
        assemble(Assembly([prepared], "neighbours", LENGTH, seed=1), tokenizer, out)
    with pytest.raises(ValueError, match="was begun by lrk-data prepare; choose another"):
        assemble(Assembly([prepared], "neighbours", LENGTH), tokenizer, prepared)
    shards.atomic.write_text(
        Path(prepared) / "manifest.json",
        (Path(prepared) / "manifest.json").read_text().replace('"numpy"', '"numpi"'),
    )
    with pytest.raises(ValueError, match=r"was begun when input '.*prepared' was another"):
        assemble(Assembly([prepared], "neighbours", LENGTH), tokenizer, out)


def test_conversations_are_refused(tokenizer, tmp_path):
    (tmp_path / "chat.jsonl").write_text('{"prompt": "Who? ", "completion": "He."}\n' * 3)
    prepare(Preparation([str(tmp_path / "chat.jsonl")]), tokenizer, tmp_path / "prepared")
    assembly = Assembly([str(tmp_path / "prepared")], "neighbours", 20)
    with pytest.raises(ValueError, match="holds conversations; only texts are assembled"):
        assemble(assembly, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
