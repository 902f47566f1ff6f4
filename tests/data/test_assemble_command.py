import pytest

from lrk.data import Preparation, prepare
from lrk.data.command import main
from studies.tiny import prose


@pytest.fixture
def words(tokenizer, tmp_path, monkeypatch) -> list[str]:
    """What stands before the options that are wrong; there are 12 documents of 20 to 60 tokens."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for number in range(12):
        (tmp_path / "books" / f"{number:02}.txt").write_text(prose(3 + number % 5, number))
    prepare(Preparation(["books"]), tokenizer, "prepared")
    return ["assemble", "--tokenizer", tokenizer.name_or_path, "--output_dir", "o"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method neighbours", "the following arguments are required: --data"),
        ("--data prepared", "the following arguments are required: --method"),
        ("--data prepared --method neighbors", "method 'neighbors' is unknown; it must be one of "
            "neighbours, negatives; did you mean 'neighbours'?"),
        ("--data prepared --method neighbours --target_length 1", "target_length is 1; it must be "
            "at least 2"),
        ("--data prepared --method neighbours --target_length many", "invalid int value: 'many'"),
        ("--data prepared --method neighbours --samples 0", "samples is 0; it must be at least 1"),
        ("--data prepared --method neighbours --seed -1", "seed is -1; it must be at least 0"),
        ("--data prepared --method neighbours --shard_tokens 0", "shard_tokens is 0; it must"),
        ("--data prepared --method neighbours --chunk_tokens 9", "chunk_tokens is 9 and method "
            "'neighbours'; only negatives cuts"),
        ("--data prepared --method negatives --chunk_tokens 0", "chunk_tokens is 0; it must be at"),
        ("--data prepared --method negatives --target_length 99 --chunk_tokens 99",
            "chunk_tokens is 99; it must be less than target_length 99"),
        ("--data prepared --method negatives --target_length 2000", "chunk_tokens is 2048; it mu"),
        ("--data prepared --method neighbours --min_gain 0.1",
            "min_gain is 0.1 without verify_model, which it is for"),
        ("--data prepared --method neighbours --device cpu", "device is 'cpu' without verify"),
        ("--data prepared --method neighbours --verify_gguf_file x", "verify_gguf_file is 'x' wi"),
        ("--data books --method neighbours", "data source 'books' is not prepared; run lrk-data"),
        ("--data none --method neighbours", "data source 'none' is not prepared"),
        ("--data prepared --method neighbours", "documents hold"),
        ("--data prepared --method neighbours --target_length 2", "the 12 documents hold 0 tokens "
            "together in texts that can be assembled, but one sample of target_length needs 2"),
        ("--data prepared --method negatives --target_length 300 --chunk_tokens 200",
            "none of the 12 documents has more than chunk_tokens 200 and at most half of target_l"),
        ("--data prepared --method negatives --target_length 9000 --chunk_tokens 10",
            "but one sample of target_length needs 9,000"),
        ("--data prepared --method neighbours --num_proc 0", "num_proc is 0; it must be at"),
        ("--data prepared --method neighbours --shard 2/2", "shard is 2/2; it must read i/n"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(words, options, message, tmp_path, capsys):
    assert main([*words, *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lrk-data: ")
    assert message in error
    assert "raised by" not in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_shares_say_that_others_are_missing(words, capsys):
    words += ["--data", "prepared", "--method", "negatives", "--chunk-tokens", "15"]
    words += ["--target_length", "80", "--shard_tokens", "80"]
    assert main([*words, "--shard", "1/2"]) == 0
    assert "o: the shards of 1/2 are there; when all are" in capsys.readouterr().out
    assert main(words) == 0
    assert "samples of 80 tokens" in capsys.readouterr().out


def test_a_finished_folder_whose_summary_lacks_something(words, tmp_path, capsys):
    words += ["--data", "prepared", "--method", "neighbours", "--target_length", "80"]
    assert main(words) == 0
    manifest = tmp_path / "o" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"parts"', '"part"'))
    assert main(words) == 2
    assert "manifest.json of 'o' is damaged: summary has None parts" in capsys.readouterr().err
