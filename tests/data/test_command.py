import json
import re

import pytest

from lrk.data.command import main


def test_prepare_and_select(corpus, tokenizer, tmp_path, capsys):
    prepared, selected = tmp_path / "prepared", tmp_path / "selected"
    words = [
        "--data",
        *corpus,
        "--tokenizer",
        tokenizer.name_or_path,
        "--output-dir",
        str(prepared),
    ]
    assert main(["prepare", *words, "--shard", "1/2", "--shard-characters", "3000"]) == 0
    assert "the shards of 1/2 are there; when all are" in capsys.readouterr().out
    assert main(["prepare", *words, "--shard_characters=3000"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"51 documents, [\d,]+ tokens, \d+ shards; 1 documents without text", out)
    words = ["--data", str(prepared), "--tokenizer", tokenizer.name_or_path]
    words += ["--output_dir", str(selected), "--target_length", "100", "--selection", "random"]
    assert main(["select", *words]) == 0
    out = capsys.readouterr().out
    assert "samples of 30 tokens" in out
    assert "100.0% of these tokens stand in sentences that qualify; 0.0%" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["analyse"], "invalid choice: 'analyse'"),
        (["prepare"], "the following arguments are required: --data, --tokenizer, --output_dir"),
        (["prepare", "--dat", "x"], "the following arguments are required: --data"),
        ("prepare --data x --tokenizer ./none --output_dir o", "tokenizer './none' does not exist"),
        (
            ["prepare", "--data", "x", "--tokenizer", "", "--output_dir", "o"],
            "tokenizer is empty; it must name a folder or a hub model",
        ),
        (
            "prepare --data x --tokenizer {tokenizer} --output_dir o",
            "data source 'x' does not exist",
        ),
        (
            "prepare --data x --tokenizer {tokenizer} --output_dir o --num_proc 0",
            "num_proc is 0; it must be at least 1",
        ),
        (
            "prepare --data x --tokenizer {tokenizer} --output_dir o --shard 2/2",
            "argument --shard: shard is 2/2; it must read i/n with i from 0 to n - 1",
        ),
        (
            "prepare --data x --tokenizer {tokenizer} --output_dir o --shard x",
            "shard is 'x'; it must read i/n with i from 0 to n - 1, such as 0/4",
        ),
        (
            "prepare --data x --tokenizer {tokenizer} --output_dir o --shard_characters many",
            "argument --shard_characters: invalid int value: 'many'",
        ),
        (
            "select --data x --tokenizer {tokenizer} --output_dir o",
            "selection is 'impactful' and impactful_tokens None",
        ),
        (
            "select --data x --tokenizer {tokenizer} --output_dir o --selection random",
            "data source 'x' is not prepared; run lrk-data prepare first",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, message, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if isinstance(words, str):
        words = words.format(tokenizer=tokenizer.name_or_path).split()
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lrk-data: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_full_disk(corpus, tokenizer, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lrk.data.shards.pyarrow.OSFile", full)
    words = ["--data", *corpus, "--tokenizer", tokenizer.name_or_path]
    assert main(["prepare", *words, "--output_dir", str(tmp_path / "out")]) == 1
    assert "could not be saved ([Errno 28] No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "status", "message"),
    [
        ("{corpus}", 2, "web.jsonl' is a file; it must be a folder"),
        ("{corpus}/out", 1, "web.jsonl/out': Not a directory"),
        ("/proc/out", 1, "'/proc/out': No such file or directory"),
        ("{folder}", 2, "holds something else; choose another folder"),
        ("x" * 300, 1, "File name too long"),
    ],
)
def test_an_output_that_cannot_be_written(
    corpus, tokenizer, tmp_path, capsys, place, status, message
):
    out = place.format(corpus=corpus[1], folder=tmp_path)
    words = ["--data", *corpus, "--tokenizer", tokenizer.name_or_path, "--output_dir", out]
    assert main(["prepare", *words]) == status
    error = capsys.readouterr().err
    assert error.startswith("lrk-data: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["documents_read", "documents", "tokens"])
def test_a_finished_folder_whose_summary_lacks_something(corpus, tokenizer, tmp_path, capsys, name):
    out = tmp_path / "out"
    words = ["prepare", "--data", *corpus, "--tokenizer", tokenizer.name_or_path]
    words += ["--output_dir", str(out)]
    assert main(words) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["summary"][name]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert main(words) == 2
    assert re.search(
        rf"manifest.json of '.*out' is damaged: .*None {name}", capsys.readouterr().err
    )
