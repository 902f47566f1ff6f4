import gzip
import json
import shutil
from pathlib import Path

import datasets
import pytest

from lrk.recipe import document_stream as module
from lrk.recipe import load_documents, stream_documents
from lrk.recipe.data_files import content_hashes


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "code" / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("first\nfile\n")
    (folder / "code" / "b.py").write_text("second = 2\n")
    (folder / "code" / "deep" / "c.py").write_text("third = 3\n")
    (folder / "code" / ".hidden.py").write_text("never\n")
    rows = [{"text": "row one", "body": "1"}, {"text": "row two", "body": "2"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    with gzip.open(folder / "rows.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "packed"}) + "\n")
    return folder


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.txt", ["first\nfile\n"]),
        ("code", ["second = 2\n", "third = 3\n"]),
        ("code/*.py", ["second = 2\n"]),
        ("**/*.py", ["second = 2\n", "third = 3\n"]),
        ("rows.jsonl", ["row one", "row two"]),
        ("rows.jsonl.gz", ["packed"]),
        ("rows.parquet", ["row one", "row two"]),
    ],
)
def test_each_kind_of_source(corpus, source, expected):
    loaded = load_documents([str(corpus / source)])
    assert loaded.column_names == ["text"]
    assert loaded["text"][:] == expected


def test_sources_are_joined_in_order_and_another_column_can_hold_the_text(corpus):
    loaded = load_documents([str(corpus / "rows.parquet"), str(corpus / "a.txt")], "body")
    assert loaded["text"][:] == ["1", "2", "first\nfile\n"]


def test_a_source_can_name_a_column_of_its_own(corpus):
    rows, packed = str(corpus / "rows.parquet"), str(corpus / "*.jsonl.gz")
    assert load_documents([f"{rows}#body", packed, rows])["text"][:] == [
        *("1", "2", "packed", "row one", "row two")
    ]
    assert list(stream_documents([f"{rows}#body"])) == [{"text": "1"}, {"text": "2"}]
    assert content_hashes([f"{rows}#body"]) == content_hashes([rows])
    with pytest.raises(ValueError, match="no column 'content'; text_column must be one of"):
        load_documents([f"{rows}#content"])
    with pytest.raises(ValueError, match=r"rows.parquet#' must read PLACE#COLUMN, or have no '#'"):
        load_documents([f"{rows}#"])


def test_a_name_with_a_hash_is_a_name(corpus):
    (corpus / "a#b.txt").write_text("third file")
    for name in ("a#b.txt", "a#?.txt", "*#*.txt"):
        assert load_documents([str(corpus / name)])["text"][:] == ["third file"]
    with pytest.raises(ValueError, match=r"c#d.txt' does not exist"):
        load_documents([str(corpus / "c#d.txt")])


def test_a_hub_data_set_goes_through_load_dataset(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_dict({"text": ["from the hub"], "id": [1]})

    monkeypatch.setattr(module, "load_dataset", load_dataset)
    sources = ["hub:owner/books", "hub:owner/books/english:validation#text"]
    assert load_documents(sources)["text"][:] == ["from the hub"] * 2
    assert calls == [
        (("owner/books", None), {"split": "train"}),
        (("owner/books", "english"), {"split": "validation"}),
    ]


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        ("absent.txt", "text", "does not exist"),
        ("code/*.rs", "text", "holds no file"),
        ("rows.jsonl", "content", "no column 'content'; text_column must be one of text, body"),
        ("hub:books", "text", r"must read hub:OWNER/NAME"),
    ],
)
def test_bad_sources(corpus, source, column, message):
    source = source if source.startswith("hub:") else str(corpus / source)
    with pytest.raises(ValueError, match=message):
        load_documents([source], column)


def test_what_datasets_saved_to_disk(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "id": [1, 2]})
    rows.save_to_disk(tmp_path / "alone")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "test")
    for name in ("alone", "splits"):
        assert load_documents([str(tmp_path / name)])["text"][:] == ["one", "two"]
    with pytest.raises(ValueError, match="has the splits test; one must be train"):
        load_documents([str(tmp_path / "test")])
    (file,) = (tmp_path / "alone").glob("*.arrow")
    assert load_documents([str(file)])["text"][:] == ["one", "two"]


def test_saved_conversations(tmp_path):
    """Nulls that Arrow puts where a message has no key are none of its keys."""
    for content in ("Who?", "Why?"):
        turns = [{"role": "user", "content": content}, {"role": "user", "content": "", "name": "b"}]
        rows = datasets.Dataset.from_list([{"messages": turns, "id": 1}])
        shutil.rmtree(tmp_path / "chat", ignore_errors=True)
        rows.save_to_disk(tmp_path / "chat")
        (row,) = load_documents([str(tmp_path / "chat")])["conversation"]
        assert json.loads(row) == {"messages": turns}


def test_no_source():
    with pytest.raises(ValueError, match="data is empty"):
        load_documents([])


def test_one_string_is_not_a_list_of_sources():
    with pytest.raises(TypeError, match=r"sources is the string 'a\.txt'"):
        load_documents("a.txt")


def test_a_column_that_is_not_text(tmp_path):
    (tmp_path / "n.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(
        ValueError, match=r"'text' of line 1 of data file .*n\.jsonl' holds int, not"
    ):
        load_documents([str(tmp_path / "n.jsonl")])


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt' cannot be read: .*utf-8"):
        load_documents([str(tmp_path / "latin.txt")])
