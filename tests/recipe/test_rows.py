"""Data files: of odd rows and odd bytes, each is the right document or a sentence that names it."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from lrk.recipe import load_documents, rows, stream_documents

TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]


def compressed(content: bytes) -> bytes:
    """Without the time of day, so that every process has the same cases."""
    return gzip.compress(content, mtime=0)


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def both_ways(source, column="text") -> list[dict]:
    """What is read at once, which is what is streamed."""
    streamed = list(stream_documents([str(source)], column))
    loaded = load_documents([str(source)], column)
    if loaded.column_names == ["conversation"]:
        assert [json.loads(row) for row in loaded["conversation"]] == streamed
    else:
        assert loaded["text"][:] == [document.get("text") for document in streamed]
    return streamed


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"meta": "a"}, {"other": "b"}),
        ({"id": 1}, {"id": "a1"}),
        ({"meta": {"a": 1}}, {"meta": [1]}),
    ],
)
@pytest.mark.parametrize("document", [{"text": "Who?"}, {"messages": TURNS}])
def test_columns_that_nobody_reads(tmp_path, kind, first, second, document):
    for name, row in (("1", first), ("2", second)):
        if kind == "jsonl":
            (tmp_path / f"{name}.jsonl").write_text(lines({**document, **row}))
        else:
            Dataset.from_list([{**document, **row}]).to_parquet(tmp_path / f"{name}.parquet")
    assert both_ways(tmp_path) == [document, document]


def test_a_column_that_changes_its_type_in_the_file(tmp_path):
    table = [{"text": "a", "id": 1}] * 3 + [{"text": "b", "id": "x"}, {"id": {}, "text": "c"}]
    (tmp_path / "a.jsonl").write_text(lines(*table))
    assert [row["text"] for row in both_ways(tmp_path)] == ["a", "a", "a", "b", "c"]


def test_messages_keep_their_own_keys(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "Who?"}]}
    table = [{"messages": TURNS}, {"messages": [call]}, {"messages": [parts]}]
    (tmp_path / "a.jsonl").write_text(lines(*table))
    assert both_ways(tmp_path) == table
    Dataset.from_list(table[:2]).to_parquet(tmp_path / "a.parquet")
    assert both_ways(tmp_path / "a.parquet") == table[:2]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bom.txt", b"\xef\xbb\xbfThe pass.", ["The pass."]),
        ("bom.jsonl", b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
        ("crlf.txt", b"one\r\ntwo\rthree\n", ["one\ntwo\nthree\n"]),
        ("blank.jsonl", b'\n{"text": "a"}\r\n \n{"text": null}\n{"id": 1}', ["a", None, None]),
        ("late.jsonl", b'{"id": 1}\n{"text": "a"}\n', [None, "a"]),
        ("list.json", b'[{"text": "a"},\n {"text": "b"}]', ["a", "b"]),
        ("lines.json", b'\n{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        ("object.json", b'{\n "text": "a"\n}', ["a"]),
        ("pair.jsonl", b'{"text": "\\ud83d\\ude42 \\u0000"}\n', ["🙂 \0"]),
        ("NAME.JSONL.GZ", compressed(b'{"text": "a"}\n'), ["a"]),
        ("a.txt.gz", compressed(b"one ") + compressed(b"two"), ["one two"]),
        ("a.txt.bz2", bz2.compress(b"one"), ["one"]),
        ("a.txt.xz", lzma.compress(b"one"), ["one"]),
        ("a.jsonl.zst", pyarrow.compress(b'{"text": "a"}\n', "zstd", asbytes=True), ["a"]),
    ],
)
def test_odd_files_that_are_right(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert [row.get("text") for row in both_ways(tmp_path / name)] == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", r"empty\.jsonl' holds no document"),
        ("empty.json", b"", r"empty\.json' holds no document"),
        (
            "half.jsonl",
            b'{"text": "a"}\n{"text": "\\ud83d"}\n',
            r"line 2 of .*half\.jsonl' holds "
            r"'\\ud83d', half of a character",
        ),
        (
            "half.jsonl",
            b'{"messages": [{"role": "user", "content": "\\udc00"}]}\n',
            "line 1 of .*"
            r"holds '\\udc00', half of a character",
        ),
        ("zeros.bin", b"\0\0\0\0", r"zeros\.bin' is not text: byte 0 is zero"),
        ("utf16.txt", "ab".encode("utf-16"), r"utf16\.txt' is not text: byte 3 is zero"),
        ("deep.jsonl", b"[" * 100_000, r"line 1 of .*deep\.jsonl' is not JSON"),
        ("list.jsonl", b'["text"]\n', r"line 1 of .*list\.jsonl' is list, not an object of named"),
        ("rows.json", b'[{"text": "a"}, 3]', r"row 1 of .*rows\.json' is int, not an object"),
        (
            "bytes.jsonl",
            b'{"text": "\xff"}\n',
            r"line 1 of .*bytes\.jsonl' cannot be read: .*utf-8",
        ),
        (
            "cut.jsonl.gz",
            compressed(b'{"text": "a"}\n' * 99)[:-20],
            r"cut\.jsonl\.gz' cannot be",
        ),
        ("no.txt.gz", b"no gzip", r"no\.txt\.gz' cannot be read: Not a gzipped file"),
        ("no.txt.xz", b"no xz", r"no\.txt\.xz' cannot be read"),
        ("no.txt.zst", b"no zstd", r"no\.txt\.zst' cannot be read"),
        ("no.arrow", b"no arrow", r"no\.arrow' cannot be read"),
        ("no.parquet", b"no parquet", r"no\.parquet' cannot be read"),
        (
            "ids.jsonl",
            lines(*[{"id": 1}] * 300).encode(),
            r"ids\.jsonl' has no column 'text'; .* id",
        ),
    ],
)
def test_odd_files_that_are_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_documents([str(tmp_path / name)])


def test_an_empty_file_beside_others_holds_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_text(lines({"text": "b"}))
    assert both_ways(tmp_path) == [{"text": "b"}]


def test_a_flipped_gzip_byte_is_a_sentence(tmp_path):
    whole = bytearray(compressed(lines(*({"text": f"row {n}"} for n in range(200))).encode()))
    path = tmp_path / "a.jsonl.gz"
    for place in range(10, len(whole), 7):
        damaged = whole.copy()
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz'"):
            list(stream_documents([str(path)]))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_texts_that_arrow_cannot_hold(tmp_path, monkeypatch, name):
    """2 GiB in a line aborted."""
    monkeypatch.setattr(rows, "LONGEST", 1000)
    text = json.dumps({"text": "x" * 1000}) if name != "a.txt" else "x" * 1001
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"a\.\w+' has more than 1,000 bytes; cut it into several"):
        load_documents([str(tmp_path)])
