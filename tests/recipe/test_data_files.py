import os

import pytest

from lrk.recipe import load_documents
from lrk.recipe.data_files import content_hashes, data_files


def texts(*sources) -> list[str]:
    return load_documents([str(source) for source in sources])["text"][:]


@pytest.mark.parametrize(
    "names",
    [
        ["Dune [1965].txt", "Emma.txt"],
        ["Who.txt", "Who?.txt", "Whom.txt"],
        ["x[1].txt"],
        ["*.txt", "a.txt"],
        ["{a,b}.txt", "a.txt"],
        ["a::b.txt"],
        ["hf:__x.txt", "zip:a.txt"],
    ],
    ids=" ".join,
)
def test_names_are_names_not_patterns(tmp_path, names):
    folder = tmp_path / "books [all] ?*"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    assert texts(folder) == sorted(names)
    for name in names:
        assert texts(folder / name) == [name]


def test_a_name_with_brackets_can_hold_rows(tmp_path):
    (tmp_path / "x[1].jsonl").write_text('{"text": "row"}\n')
    assert texts(tmp_path) == texts(tmp_path / "x[1].jsonl") == ["row"]


def test_linked_folders_are_read_and_each_once(tmp_path):
    shared, corpus = tmp_path / "shared", tmp_path / "corpus"
    (shared / "deep").mkdir(parents=True)
    corpus.mkdir()
    (corpus / "a.txt").write_text("a")
    (shared / "deep" / "b.txt").write_text("b")
    (corpus / "books").symlink_to(shared)
    (shared / "deep" / "back").symlink_to(corpus)
    assert texts(corpus) == ["a", "b"]
    assert texts(corpus / "**" / "*.txt") == ["a", "b"]
    assert texts(corpus / "books" / "**") == ["b", "a"]
    assert texts(corpus / "*" / "deep" / "*.txt") == ["b"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
        (lambda path: path.symlink_to(path), "is a link that leads nowhere"),
        (os.mkfifo, "holds no file"),
    ],
)
def test_what_is_no_file(tmp_path, make, message):
    make(tmp_path / "x.txt")
    with pytest.raises(ValueError, match=message):
        data_files(str(tmp_path))


def test_a_device_is_no_data_file():
    with pytest.raises(ValueError, match="'/dev/null' is neither a file nor a folder"):
        data_files("/dev/null")


def test_hidden_files_are_found_by_name_alone(tmp_path):
    (tmp_path / ".a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    assert [file.name for file in data_files(str(tmp_path))] == ["b.txt"]
    assert [file.name for file in data_files(str(tmp_path / "*.txt"))] == ["b.txt"]
    assert [file.name for file in data_files(str(tmp_path / ".*.txt"))] == [".a.txt"]


def test_hashes_follow_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before, stat = content_hashes([str(tmp_path)]), path.stat()
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert list(before) == [str(path)]
    assert content_hashes([str(tmp_path)]) != before


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    stat = path.stat()
    assert texts(path) == ["one"]
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert texts(path) == ["two"]
