"""Runs on folders that lrk-data wrote, and runs that choose the text of their samples."""

from pathlib import Path

import pytest
import torch

from lrk.data import Preparation, prepare
from lrk.recipe import ImpactfulTokens, prepared
from lrk.train import LrkTrainer, LrkTrainingArguments, train
from lrk.train.dry_run import dry_run
from lrk.train.session import load_samples, set_up
from studies.ranks import run_ranks
from studies.tiny import train_tokenizer


@pytest.fixture
def folder(corpus: Path, tokenizer, tmp_path: Path) -> str:
    preparation = Preparation([str(corpus / "*.txt")], shard_characters=1000)
    prepare(preparation, tokenizer, tmp_path / "prepared")
    return str(tmp_path / "prepared")


@pytest.fixture
def table(tokenizer, tmp_path: Path) -> str:
    path = tmp_path / "table.json"
    path.write_text(ImpactfulTokens.of(tokenizer, tokenizer(" winter")["input_ids"]).to_json())
    return str(path)


def weights(trainer: LrkTrainer) -> list[torch.Tensor]:
    return list(trainer.model.state_dict().values())


def test_a_prepared_folder_trains_like_its_documents(arguments, folder, tmp_path):
    raw = train(arguments())
    made = train(arguments(data=[folder], output_dir=str(tmp_path / "prepared-run")))
    assert len(raw.train_dataset) == len(made.train_dataset)
    assert all(map(torch.equal, weights(raw), weights(made)))


def set_up_in_a_rank(options: dict) -> tuple[str, list[str]]:
    """What it says of the data, and which shards it has read."""
    hashed: list[str] = []
    sha256_of = prepared.sha256_of

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    prepared.sha256_of = noted  # type: ignore[assignment]
    try:
        set_up(LrkTrainingArguments(**options, use_cpu=True))
    except ValueError as error:
        return str(error), hashed
    return "", hashed


def test_each_rank_checks_some_hashes_and_all_end_with_the_sentence_of_one(options, folder):
    path = Path(folder) / "documents-00001.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:-400] + bytes([content[-400] ^ 1]) + content[-399:])
    found = run_ranks(set_up_in_a_rank, 2, options | {"data": [folder]})
    sentences, hashed = zip(*found, strict=True)
    assert "documents-00001.arrow' is damaged: its hash is not that of" in sentences[0]
    assert sentences[0] == sentences[1]
    assert sorted(hashed[0] + hashed[1]) == [
        file.name for file in sorted(Path(folder).glob("doc*"))
    ]


def test_selections_train(arguments, folder, table, tmp_path):
    for selection, changes in {
        "impactful": {"impactful_tokens": table},
        "digits": {},
        "positions": {"position_method": "cream"},
    }.items():
        made = arguments(
            data=[folder], selection=selection, output_dir=str(tmp_path / selection), **changes
        )
        said = dry_run(made)
        assert f"selection        {selection}, which leaves out" in said
        assert ("qualify, for the first" in said) == (selection != "positions")
        trainer = train(made)
        batch = trainer.data_collator([trainer.train_dataset[0]])
        assert batch["input_ids"].shape == batch["position_ids"].shape == (1, 32)
        assert trainer.state.global_step == 2
        assert f"selection: {selection}" in Path(made.output_dir, "config.yaml").read_text()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_prompt_ends_every_sample(arguments, folder, corpus, streaming):
    data = [str(corpus / "*.txt")] if streaming else [folder]
    made = arguments(
        data=data, streaming=streaming, position_method="endprompt", end_prompt="Nobody crossed it."
    )
    assert "Token plan" in dry_run(made)
    trainer = train(made)
    prompt = trainer.processing_class("Nobody crossed it.")["input_ids"]
    batch = trainer.data_collator([next(iter(trainer.train_dataset))])
    assert batch["input_ids"].shape == (1, 32)
    assert batch["input_ids"][0, -len(prompt) :].tolist() == prompt
    assert batch["labels"][0, -len(prompt) :].tolist() == prompt
    tail = list(range(256 - len(prompt), 256))
    assert batch["position_ids"][0, -len(prompt) :].tolist() in (
        tail,
        list(range(32))[-len(prompt) :],
    )


def test_a_stream_chooses_the_same_text(arguments, table):
    options = {"selection": "impactful", "impactful_tokens": table}
    tokenizer = set_up(arguments(**options)).processing_class
    prepared, _ = load_samples(arguments(**options), tokenizer)
    stream, _ = load_samples(arguments(**options, streaming=True, shuffle_buffer=0), tokenizer)
    streamed = sorted(s["input_ids"].tolist() for s in stream.one_pass(iter(range(1000))))
    assert streamed == sorted(s["input_ids"].tolist() for s in prepared)


def test_long_documents_are_read_more_often(arguments, folder, tokenizer):
    plain, _ = load_samples(arguments(data=[folder]), tokenizer)
    upsampled, _ = load_samples(
        arguments(data=[folder], upsample_longer_than=200, upsample_factor=50.0), tokenizer
    )

    def share_alone(samples) -> float:
        return 1 - samples.num_packed / len(samples)

    assert share_alone(upsampled) > share_alone(plain)
    assert abs(upsampled.num_tokens - plain.num_tokens) < 400


def test_evaluation_is_not_selected(arguments, folder, corpus):
    trainer = set_up(
        arguments(data=[folder], eval_data=[folder], selection="random", position_method="randpos")
    )
    (placed, *_) = trainer.eval_dataset.values()
    first = trainer.processing_class.decode(placed[0]["input_ids"])
    assert (corpus / "0.txt").read_text().startswith(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "best"}, "selection 'best' is unknown; it must be one of impactful"),
        ({"selection": "impactful"}, "selection is 'impactful' and impactful_tokens None"),
        ({"impactful_tokens": "t.json"}, "selection is None and impactful_tokens 't.json'"),
        ({"selection": "positions"}, "but position_method 'longrecipe' puts its gaps between"),
        (
            {"pin_end": True, "position_method": "pose"},
            "pin_end is true with position_method 'pose'",
        ),
        ({"end_prompt": "Go."}, "end_prompt is given with position_method 'longrecipe'"),
        ({"upsample_longer_than": 0}, "upsample_longer_than is 0; it must be positive"),
        (
            {"upsample_longer_than": 9, "upsample_factor": 0.1},
            "upsample_factor is 0.1; it must be at least 1",
        ),
        ({"upsample_longer_than": 9, "streaming": True}, "upsample_longer_than is 9 with stream"),
    ],
)
def test_arguments_that_do_not_fit(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)


def test_data_that_do_not_fit(arguments, folder, corpus, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"data mix the prepared folder '.*prepared' with docum"):
        load_samples(arguments(data=[folder, str(corpus / "*.txt")]), tokenizer)
    with pytest.raises(ValueError, match="upsample_longer_than is 9, but data are not prepared"):
        load_samples(arguments(upsample_longer_than=9), tokenizer)
    with pytest.raises(ValueError, match=r"prepared' is prepared and read where it lies"):
        load_samples(arguments(data=[folder], streaming=True), tokenizer)
    with pytest.raises(ValueError, match="was prepared with another tokenizer"):
        load_samples(arguments(data=[folder]), train_tokenizer(["another one"], 300))
    next(Path(folder).glob("documents-*")).unlink()
    with pytest.raises(ValueError, match=r"shard '.*documents-\d+.arrow' is missing"):
        load_samples(arguments(data=[folder]), tokenizer)
