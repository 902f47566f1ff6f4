import copy
import multiprocessing
import os
import signal
import time
from itertools import count

import pytest
from datasets import Dataset

from lrk.recipe import SampleStream, load_documents, tokenize, tokens


def test_documents_close_with_the_end_token_and_segments_cover_them(byte_tokenizer, english):
    texts = [english, "", "One. Two. Three.", None, "  \n"]
    tokenized = tokenize(Dataset.from_dict({"text": texts}), byte_tokenizer)
    assert tokenized.column_names == ["input_ids", "segment_lengths"]
    assert len(tokenized) == 2
    for row, text in zip(tokenized, [english, "One. Two. Three."], strict=True):
        assert row["input_ids"][-1] == byte_tokenizer.eos_token_id
        assert byte_tokenizer.decode(row["input_ids"][:-1]) == text
        assert sum(row["segment_lengths"]) == len(row["input_ids"])
    assert len(tokenized[1]["segment_lengths"]) == 3


def test_the_end_token_is_not_doubled(byte_tokenizer):
    documents = Dataset.from_dict({"text": ["Done.<end>"]})
    tokenized = tokenize(documents, byte_tokenizer, split_special_tokens=False)
    assert tokenized[0]["input_ids"].count(byte_tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("text", ["The <end> is near.", "It ends.<end>", "<end><end>"])
def test_special_tokens_in_a_text_are_text(byte_tokenizer, text):
    """They ended the document in its middle."""
    documents = Dataset.from_dict({"text": [text]})
    for split, expected in ((True, 1), (False, max(1, text.count("<end>") + text.endswith("r.")))):
        (row,) = tokenize(documents, byte_tokenizer, split_special_tokens=split)
        assert row["input_ids"].count(byte_tokenizer.eos_token_id) == expected
        if split:
            assert byte_tokenizer.decode(row["input_ids"][:-1]) == text
    whole = tokenize(documents, byte_tokenizer)[0]["input_ids"]
    sample = next(SampleStream(documents, byte_tokenizer, len(whole)).one_pass(count()))
    assert sample["input_ids"].tolist() == whole


def test_more_processes_give_the_same(byte_tokenizer, english):
    documents = Dataset.from_dict({"text": [english[i:] for i in range(8)]})
    one, two = tokenize(documents, byte_tokenizer), tokenize(documents, byte_tokenizer, num_proc=2)
    assert one[:] == two[:]


def test_documents_without_text_are_refused(byte_tokenizer):
    with pytest.raises(ValueError, match="none of the 2 documents holds text"):
        tokenize(Dataset.from_dict({"text": ["", " \n"]}), byte_tokenizer)


def test_another_release_does_not_take_the_tokens_of_this_one(
    byte_tokenizer, tmp_path, monkeypatch
):
    (tmp_path / "a.txt").write_text("The pass is closed. " * 9)
    documents = load_documents([str(tmp_path / "a.txt")])
    before = tokenize(documents, byte_tokenizer)
    monkeypatch.setattr("lrk.recipe.segments.LONGEST_SEGMENT", 4)
    assert tokenize(documents, byte_tokenizer)[:] == before[:], "out of the cache"
    monkeypatch.setattr("lrk.recipe.tokens.code_hash", lambda: "of another release")
    assert tokenize(documents, byte_tokenizer)[:] != before[:]


def test_use_changes_no_name_in_the_cache(byte_tokenizer, tmp_path):
    """A process that tokenized the first source looked for the second elsewhere than the others."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("The pass is closed. " * 9)
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(7)  # as some are saved; a call takes it back
    documents = load_documents([str(tmp_path)])
    first, second = (tokenize(documents, tokenizer) for _ in range(2))
    assert len(first["input_ids"][0]) > 7
    assert second._fingerprint == first._fingerprint
    assert second.cache_files == first.cache_files != []


def _tokenize_slowly(folder, tokenizer, monkeypatch) -> None:
    """In a process: note who tokenizes, and wait for leave after each batch."""
    rows = tokens._text_rows

    def slow(*arguments):
        with (folder / "log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        while not (folder / "leave").exists():
            time.sleep(0.01)
        return rows(*arguments)

    monkeypatch.setattr(tokens, "_text_rows", slow)
    monkeypatch.setattr("lrk.lock._POLL", 0.01)
    documents = load_documents([str(folder / "corpus")])
    (folder / f"{os.getpid()}").write_text(str(tokenize(documents, tokenizer)["input_ids"][:]))


@pytest.mark.parametrize("is_killed", [False, True])
def test_of_two_processes_one_tokenizes(byte_tokenizer, tmp_path, monkeypatch, is_killed):
    """A barrier with a limit killed the run; both at once did the work twice."""
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"The pass {number} is closed. " * 9)

    def start():
        arguments = (tmp_path, byte_tokenizer, monkeypatch)
        process = context.Process(target=_tokenize_slowly, args=arguments)
        process.start()
        return process

    def logged() -> list[int]:
        log = tmp_path / "log"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    context = multiprocessing.get_context("fork")
    first = start()
    while not logged():
        time.sleep(0.01)
    second = start()
    time.sleep(0.5)
    assert second.is_alive()
    assert logged() == [first.pid], "the second waits"
    if is_killed:
        first.kill()
        first.join()
    (tmp_path / "leave").touch()
    for process in (first, second):
        process.join()
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL if is_killed else 0, 0)
    who = [first.pid] + 3 * [second.pid] if is_killed else 3 * [first.pid]
    assert logged() == who, "40 documents are three batches"
    found = (tmp_path / f"{second.pid}").read_text()
    documents = load_documents([str(tmp_path / "corpus")])
    assert found == str(tokenize(documents, byte_tokenizer)["input_ids"][:])
