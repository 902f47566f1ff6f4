import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
from datasets import Dataset

from lrk.data import Preparation, Share, prepare, shards
from lrk.recipe import load_documents, prepared, tokenize
from lrk.recipe.prepared import is_prepared, open_prepared, read_manifest
from lrk.share import at_work
from studies.tiny import prose, train_tokenizer

CHARACTERS = 3000


def contents(folder: Path) -> dict[str, bytes]:
    """Of a folder, less its locks."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*"))}


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
    names = {path.name for path in whole.iterdir()} - {".lock"}  # which some releases leave
    assert {Path(name).suffix for name in names} == {".arrow", ".json"}
    assert json.loads((whole / "manifest.json").read_text())["format"] == "lrk prepared 1"


def test_shares_in_any_order_make_the_same_folder(whole, preparation, tokenizer, tmp_path):
    folder = tmp_path / "shared"
    assert prepare(preparation, tokenizer, folder, Share(2, 3)) is None
    assert prepare(preparation, tokenizer, folder, Share(0, 3)) is None
    with pytest.raises(ValueError, match=r"shared' is not finished: run lrk-data prepare again"):
        open_prepared([str(folder)], tokenizer)
    assert prepare(preparation, tokenizer, folder, Share(1, 3)) == read_manifest(folder)
    assert contents(folder) == contents(whole)


def test_shares_in_folders_of_their_own_are_put_together(whole, preparation, tokenizer, tmp_path):
    for index in range(2):
        part = tmp_path / f"part{index}"
        assert prepare(preparation, tokenizer, part, Share(index, 2)) is None
        shutil.copytree(part, tmp_path / "both", dirs_exist_ok=True)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "both").glob("documents-*")}
    prepare(preparation, tokenizer, tmp_path / "both")
    assert contents(tmp_path / "both") == contents(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_files_prepared_apart_are_the_same_tokens(whole, corpus, tokenizer, tmp_path):
    folders = [str(tmp_path / f"part{number}") for number in range(len(corpus))]
    for source, folder in zip(corpus, folders, strict=True):
        prepare(Preparation([source], shard_characters=CHARACTERS), tokenizer, folder)
    joined = open_prepared(folders, tokenizer)
    assert joined["input_ids"][:] == open_prepared([str(whole)], tokenizer)["input_ids"][:]


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


def test_processes_of_a_machine_check_some_hashes_each(whole, tokenizer, monkeypatch):
    """All checked all: a corpus was read once for each GPU."""
    hashed: list[str] = []
    sha256_of = prepared.sha256_of

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(prepared, "sha256_of", noted)
    parts = []
    for index in range(2):
        hashed.clear()
        assert len(open_prepared([str(whole)], tokenizer, Share(index, 2))) == 51
        parts.append(set(hashed))
    assert all(parts)
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {path.name for path in whole.glob("documents-*")}
    path = whole / sorted(parts[1])[0]
    content = path.read_bytes()
    path.write_bytes(content[:-400] + bytes([content[-400] ^ 1]) + content[-399:])
    open_prepared([str(whole)], tokenizer, Share(0, 2))
    with pytest.raises(ValueError, match="its hash is not that of"):
        open_prepared([str(whole)], tokenizer, Share(1, 2))
    path.write_bytes(content[:900])
    for index in range(2):
        with pytest.raises(ValueError, match="bytes in place of"):
            open_prepared([str(whole)], tokenizer, Share(index, 2))


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
    with pytest.raises(ValueError, match=r"begun when input '.*web.jsonl' was another \(\w+, now"):
        prepare(preparation, tokenizer, whole)


def test_documents_of_the_same_size_and_time_are_not_mixed(
    preparation, tokenizer, corpus, tmp_path
):
    prepare(preparation, tokenizer, tmp_path / "out", Share(0, 2))
    path = Path(corpus[0]) / "00.txt"
    before = path.stat()
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(ValueError, match=r"begun when input '.*00.txt' was another"):
        prepare(preparation, tokenizer, tmp_path / "out", Share(1, 2))


def test_chat_templates_are_not_mixed(tokenizer, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"Who {n}?"}]} for n in range(4)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    preparation = Preparation([str(tmp_path / "chat.jsonl")], assistant_only=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}.{% endfor %}"
    try:
        prepare(preparation, tokenizer, tmp_path / "out")
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}!{% endfor %}"
        with pytest.raises(ValueError, match="begun when input 'chat_template' was another"):
            prepare(preparation, tokenizer, tmp_path / "out")
    finally:
        tokenizer.chat_template = None


def test_versions_that_changed_show_in_a_shard_that_is_made_anew(
    whole, preparation, tokenizer, monkeypatch
):
    (whole / "documents-00000.arrow").unlink()
    monkeypatch.setattr("lrk.recipe.segments.LONGEST_SEGMENT", 4)
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
    with pytest.raises(ValueError, match=r"none of the documents of '.*empty.txt' holds text"):
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


def changed_manifest(folder: Path, change) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../victim.txt", "{folder}/victim.txt", "manifest.json", ""])
def test_a_manifest_deletes_no_other_file(whole, preparation, tokenizer, tmp_path, name):
    """A shard whose hash is wrong is deleted, to be made anew."""
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    before = contents(whole)
    file = name.format(folder=tmp_path)
    changed_manifest(whole, lambda content: content["shards"][0].update(file=file))
    with pytest.raises(ValueError, match=r"is damaged: shard 0 is .*; it must be 'documents-00000"):
        prepare(preparation, tokenizer, whole)
    assert victim.read_text() == "precious"
    assert contents(whole).keys() == before.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["shards"].pop(), r"summary has \d+ documents, and the shards \d+"),
        (lambda content: content["shards"].pop(0), "shard 0 is 'documents-00001.arrow'"),
        (lambda content: content["shards"].reverse(), "shard 0 is 'documents-0000"),
        (lambda content: content.update(shards={}), "summary has"),
        (lambda content: content.update(shards=[]), "summary has"),
        (lambda content: content.update(shards=[{}]), "missing 5 required"),
        (lambda content: content.update(shards="ab"), "must be a mapping"),
        (lambda content: content.update(shards=3), "not iterable"),
        (lambda content: content.update(summary={}), "summary has None documents"),
        (lambda content: content["shards"][0].update(bytes="9"), "bytes is '9', of type str"),
        (lambda content: content["shards"][0].update(documents=1), "summary has"),
        (lambda content: content.update(inputs=[]), "inputs is"),
        (lambda content: content.update(more=1), "unexpected keyword argument 'more'"),
    ],
)
def test_manifests_that_are_not_of_their_shards(whole, preparation, tokenizer, change, message):
    before = contents(whole)
    changed_manifest(whole, change)
    for call in (
        lambda: open_prepared([str(whole)], tokenizer),
        lambda: prepare(preparation, tokenizer, whole),
    ):
        with pytest.raises(ValueError, match=rf"manifest.json of '.*' is damaged: .*{message}"):
            call()
    assert contents(whole).keys() == before.keys()


def test_one_process_a_share(preparation, tokenizer, tmp_path):
    """Of two in one folder each lost the other's shards."""
    folder = tmp_path / "out"
    refused = "another process is writing to '.*out'"
    with at_work(folder, Share(0, 2)):
        with at_work(folder, Share(1, 2)):
            pass
        for share in (Share(0, 2), Share(0, 3), Share()):
            with pytest.raises(ValueError, match=refused):
                prepare(preparation, tokenizer, folder, share)
    with at_work(folder, Share()), pytest.raises(ValueError, match=refused):
        prepare(preparation, tokenizer, folder, Share(1, 2))
    prepare(preparation, tokenizer, folder)


def test_shares_at_a_time_make_the_same_folder(whole, preparation, tokenizer, tmp_path):
    folder = tmp_path / "shared"
    processes = [
        multiprocessing.get_context("fork").Process(
            target=prepare, args=(preparation, tokenizer, folder, Share(number, 3))
        )
        for number in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    prepare(preparation, tokenizer, folder)
    assert contents(folder) == contents(whole)


def test_splitting_special_tokens_is_part_of_the_manifest(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("The <end> is near.")
    sources, out = [str(tmp_path / "a.txt")], tmp_path / "out"
    prepare(Preparation(sources), tokenizer, out)
    assert read_manifest(out).arguments["split_special_tokens"] is True
    assert open_prepared([str(out)], tokenizer)[0]["input_ids"].count(tokenizer.eos_token_id) == 1
    with pytest.raises(ValueError, match="with split_special_tokens True, which is now False"):
        prepare(Preparation(sources, split_special_tokens=False), tokenizer, out)
    prepare(Preparation(sources, split_special_tokens=False), tokenizer, tmp_path / "other")
    (row,) = open_prepared([str(tmp_path / "other")], tokenizer)
    assert row["input_ids"].count(tokenizer.eos_token_id) == 2
