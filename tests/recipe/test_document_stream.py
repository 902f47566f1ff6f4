import gzip
import json
from pathlib import Path

import datasets
import pytest

from lrk.recipe import document_stream as module
from lrk.recipe import load_documents, stream_documents


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("first\nfile\n")
    (folder / "b.txt").write_text("second\n\nfile")
    table = [{"text": "row one", "body": "1"}, {"text": None, "body": "2"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    datasets.Dataset.from_list(table).to_parquet(folder / "rows.parquet")
    datasets.Dataset.from_list(table).save_to_disk(folder / "saved")
    with gzip.open(folder / "rows.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "packed"}) + "\n")
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": turns, "id": 3}) + "\n")
    pair = {"prompt": "Who? ", "completion": "Nobody.", "id": 3}
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    return folder


@pytest.mark.parametrize(
    "sources",
    [
        ["a.txt"],
        ["*.txt"],
        ["rows.jsonl"],
        ["rows.jsonl.gz"],
        ["rows.parquet"],
        ["saved"],
        ["saved/*.arrow"],
        ["chat.jsonl"],
        ["pairs.jsonl"],
        ["b.txt", "rows.parquet", "rows.jsonl", "a.txt"],
    ],
    ids=" ".join,
)
def test_a_stream_is_what_would_be_prepared(corpus, sources):
    paths = [str(corpus / source) for source in sources]
    prepared = load_documents(paths)
    stream = stream_documents(paths)
    assert prepared.column_names == ["text" if stream.is_text else "conversation"]
    expected = [row if stream.is_text else json.loads(row["conversation"]) for row in prepared]
    assert list(stream) == expected
    assert list(stream) == expected, "it can be read again"


def test_another_column_can_hold_the_text(corpus):
    stream = stream_documents([str(corpus / "rows.parquet"), str(corpus / "a.txt")], "body")
    assert [row["text"] for row in stream] == ["1", "2", "first\nfile\n"]


def test_nothing_is_prepared(corpus):
    list(stream_documents([str(corpus / "rows.parquet"), str(corpus / "rows.jsonl")]))
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))


def test_a_hub_data_set_is_opened_as_a_stream(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_dict({"text": ["from the hub"]}).to_iterable_dataset()

    monkeypatch.setattr(module, "load_dataset", load_dataset)
    stream = stream_documents(["hub:owner/books/english:validation"])
    assert list(stream) == [{"text": "from the hub"}]
    assert calls == [(("owner/books", "english"), {"split": "validation", "streaming": True})]


@pytest.mark.parametrize(
    ("sources", "column", "message"),
    [
        (["absent.txt"], "text", "does not exist"),
        (["rows.jsonl"], "content", "no column 'content'; text_column must be one of text, body"),
        (
            ["chat.jsonl", "a.txt"],
            "text",
            r"mixes texts \(.*a\.txt'\) and conversations \(line 1 of .*chat\.jsonl",
        ),
        (["number.jsonl"], "text", r"'text' of .*number\.jsonl' holds int, not text"),
        (["torn.jsonl"], "text", r"line 3 of data file .*torn\.jsonl' is not JSON"),
        (["cut.parquet"], "text", r"data file .*cut\.parquet' cannot be read: Parquet magic bytes"),
        (["latin.txt"], "text", r"latin\.txt' cannot be read: .*utf-8"),
    ],
)
def test_bad_sources(corpus, sources, column, message):
    row = json.dumps({"text": "good"}) + "\n"
    (corpus / "number.jsonl").write_text('{"text": 1}\n')
    (corpus / "torn.jsonl").write_text(row + row + row[:6])
    cut = (corpus / "rows.parquet").read_bytes()[:200]
    (corpus / "cut.parquet").write_bytes(cut)
    (corpus / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=message):
        list(stream_documents([str(corpus / source) for source in sources], column))


def test_no_list_of_sources():
    with pytest.raises(ValueError, match="data is empty"):
        stream_documents([])
    with pytest.raises(TypeError, match=r"sources is the string 'a\.txt'"):
        stream_documents("a.txt")
