import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from datasets import Dataset

from lrk.data import Preparation, Share, prepare, shards
from lrk.recipe import load_documents, tokenize
from lrk.recipe.prepared import is_prepared, open_prepared, read_manifest
from studies.tiny import prose, train_tokenizer

CHARACTERS = 3000


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def preparation(corpus) -> Preparation:
    return Preparation(corpus, shard_characters=CHARACTERS)


@pytest.fixture
def whole(preparation, tokenizer, tmp_path) -> Path:
    folder = tmp_path / "whole"
    prepare(preparation, tokenizer, folder)
    return folder


def test_the_documents_are_those_that_tokenize_makes(whole, corpus, tokenizer):
    expected = tokenize(load_documents(corpus), tokenizer)
    opened = open_prepared([str(whole)], tokenizer)
    assert opened.column_names == ["input_ids", "segment_lengths", "source"]
    assert opened["input_ids"][:] == expected["input_ids"][:]
    assert opened["segment_lengths"][:] == expected["segment_lengths"][:]
    assert opened["source"][:] == [0] * 12 + [1] * 39
    manifest = read_manifest(whole)
    assert manifest.sources == corpus
    assert manifest.summary == {
        "documents_read": 52,
        "documents": 51,
        "tokens": sum(map(len, expected["input_ids"])),
    }
    assert manifest.shards is not None
    assert len(manifest.shards) > 4


def test_nothing_is_pickled_or_left_over(whole):
    assert {path.suffix for path in whole.iterdir()} == {".arrow", ".json"}
    assert json.loads((whole / "manifest.json").read_text())["format"] == "lrk prepared 1"


def test_shares_in_any_order_make_the_same_folder(whole, preparation, tokenizer, tmp_path):
    folder = tmp_path / "shared"
    assert prepare(preparation, tokenizer, folder, Share(2, 3)) is None
    assert prepare(preparation, tokenizer, folder, Share(0, 3)) is None
    with pytest.raises(ValueError, match=r"shared' is not finished: run lrk-data prepare again"):
        open_prepared([str(folder)], tokenizer)
    assert prepare(preparation, tokenizer, folder, Share(1, 3)) == read_manifest(folder)
    assert contents(folder) == contents(whole)


def test_processes_make_the_same_folder(whole, preparation, tokenizer, tmp_path, monkeypatch):
    """Forked here, because a spawned process imports everything anew, which takes long."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr("lrk.data.shards.get_context", lambda method: fork)
    prepare(preparation, tokenizer, tmp_path / "processes", num_proc=2)
    assert contents(tmp_path / "processes") == contents(whole)


def killed(preparation, tokenizer, folder, moment: str, after: int) -> None:
    """Prepare in a process that kills itself in the middle, or at the end, of a shard."""
    done = 0
    replace, write_batch = os.replace, shards.pyarrow.RecordBatch.from_pydict

    def count(kind: str) -> None:
        nonlocal done
        done += kind == moment
        if done > after:
            os.kill(os.getpid(), signal.SIGKILL)

    class RecordBatch:
        @staticmethod
        def from_pydict(*arguments):
            count("write")
            return write_batch(*arguments)

    def counted_replace(*arguments):
        replace(*arguments)
        count("rename")

    shards.pyarrow.RecordBatch = RecordBatch
    os.replace = counted_replace
    prepare(preparation, tokenizer, folder)


@pytest.mark.parametrize(
    ("moment", "after"),
    [("rename", 0), ("rename", 1), ("write", 0), ("write", 3), ("write", 5), ("rename", 4)],
)
def test_a_killed_run_goes_on(whole, preparation, tokenizer, tmp_path, moment, after):
    """The first file that is renamed is the manifest."""
    folder = tmp_path / "killed"
    child = multiprocessing.get_context("fork").Process(
        target=killed, args=(preparation, tokenizer, folder, moment, after)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    made = {path: path.stat().st_mtime_ns for path in folder.glob("documents-*")}
    assert len(made) < len(list(whole.glob("documents-*")))
    prepare(preparation, tokenizer, folder)
    assert contents(folder) == contents(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in made.items()), "made once"


def test_a_folder_whose_manifest_was_being_written(whole, preparation, tokenizer, tmp_path):
    """A kill, or another machine, before the manifest has its name."""
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / ".partial-manifest.json").write_text("{")
    prepare(preparation, tokenizer, folder)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), r"shard '.*documents-00002.arrow' is missing"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-8]),
            r"documents-00002.arrow' is damaged: it has [\d,]+ bytes in place of [\d,]+",
        ),
        (
            lambda path: path.write_bytes(
                (content := path.read_bytes())[:900] + bytes([content[900] ^ 1]) + content[901:]
            ),
            r"documents-00002.arrow' is damaged: its hash is not that of manifest.json",
        ),
    ],
    ids=["missing", "cut short", "a bit"],
)
def test_a_shard_that_is_missing_or_damaged(whole, preparation, tokenizer, harm, message):
    before = contents(whole)
    harm(whole / "documents-00002.arrow")
    with pytest.raises(ValueError, match=f"{message}; run lrk-data prepare again"):
        open_prepared([str(whole)], tokenizer)
    prepare(preparation, tokenizer, whole)
    assert contents(whole) == before


def test_another_tokenizer_is_refused(whole, preparation, tokenizer):
    other = train_tokenizer([prose(200, 1)], 300)
    with pytest.raises(ValueError, match=r"whole' was prepared with another tokenizer than"):
        open_prepared([str(whole)], other)
    with pytest.raises(ValueError, match="was begun with another tokenizer"):
        prepare(preparation, other, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_column": "body"}, "with text_column 'text', which is now 'body'"),
        ({"assistant_only": False}, "with assistant_only True, which is now False"),
        ({"shard_characters": 9}, "with shard_characters 3000, which is now 9"),
        ({"data": ["elsewhere.txt"]}, r"with data \[.*\], which is now \['elsewhere.txt'\]"),
    ],
)
def test_changed_arguments_over_an_old_manifest(
    whole, preparation, tokenizer, change, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("elsewhere.txt").write_text("The pass. ")
    changed = Preparation(**{**vars(preparation), **change})
    with pytest.raises(ValueError, match=f"whole' was begun {message}; choose another folder"):
        prepare(changed, tokenizer, whole)


def test_changed_documents_over_an_old_manifest(whole, preparation, tokenizer, corpus):
    with Path(corpus[1]).open("a") as file:
        file.write('{"text": "More."}\n')
    with pytest.raises(ValueError, match=r"begun when input '.*web.jsonl' was another \(\d+, now"):
        prepare(preparation, tokenizer, whole)


def test_documents_that_changed_without_showing_are_found(whole, preparation, tokenizer, corpus):
    path = Path(corpus[0]) / "00.txt"
    path.write_text(path.read_text()[::-1])
    (whole / "documents-00000.arrow").unlink()
    with pytest.raises(ValueError, match=r"'documents-00000.arrow' of .* was made anew and is not"):
        prepare(preparation, tokenizer, whole)


def test_folders_that_hold_something_else(preparation, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="holds something else; choose another folder"):
        prepare(preparation, tokenizer, tmp_path)
    prepare(preparation, tokenizer, tmp_path / "out")
    with pytest.raises(ValueError, match="out' holds token ids that lrk-data prepared, not doc"):
        prepare(Preparation([str(tmp_path / "out")]), tokenizer, tmp_path / "again")
    assert not is_prepared(tmp_path)
    assert not is_prepared(tmp_path / "nothing")


def test_no_text_and_no_characters(tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"none of the documents for .* holds text"):
        prepare(Preparation([str(tmp_path / "empty.txt")]), tokenizer, tmp_path / "out")
    with pytest.raises(ValueError, match="shard_characters is 0; it must be positive"):
        Preparation(["x"], shard_characters=0)


def test_a_manifest_that_lacks_something(whole, tokenizer):
    content = json.loads((whole / "manifest.json").read_text())
    del content["shards"]
    (whole / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"manifest.json of .* is damaged: 'shards'"):
        open_prepared([str(whole)], tokenizer)


def test_conversations(tokenizer, tmp_path):
    pairs = [{"prompt": f"Who {n}? ", "completion": "Nobody. " * n} for n in range(1, 9)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    folder = tmp_path / "pairs"
    prepare(Preparation([str(path)], shard_characters=60), tokenizer, folder)
    opened = open_prepared([str(folder)], tokenizer)
    expected = tokenize(Dataset.from_list(pairs), tokenizer)
    assert opened["is_label"][:] == expected["is_label"][:]
    assert opened["input_ids"][:] == expected["input_ids"][:]


def test_a_hub_data_set_is_streamed(tokenizer, tmp_path, monkeypatch):
    rows = Dataset.from_dict({"text": ["The pass is closed."] * 3}).to_iterable_dataset()
    monkeypatch.setattr("lrk.recipe.document_stream.load_dataset", lambda *_, **options: rows)
    manifest = prepare(Preparation(["hub:owner/books"]), tokenizer, tmp_path / "hub")
    assert manifest is not None
    assert manifest.sources == ["hub:owner/books"]
    assert manifest.inputs == {}
    assert len(open_prepared([str(tmp_path / "hub")], tokenizer)) == 3


@pytest.mark.parametrize("text", ["1", "1/1", "a/b", "-1/2", "1/0", ""])
def test_shares_that_are_none(text):
    with pytest.raises(ValueError, match=r"shard is .*; it must read i/n"):
        Share.parse(text)
