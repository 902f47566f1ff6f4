"""Runs whose data are read as training goes."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch

from lrk.recipe import SampleStream
from lrk.train import LrkTrainer, train
from lrk.train.dry_run import dry_run
from lrk.train.session import set_up
from lrk.train.telemetry import read_metrics

STREAM = {"streaming": True, "shuffle_buffer": 4, "per_device_train_batch_size": 2}


def weights(trainer: LrkTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (8, 1), (10, 0)])
def test_a_resumed_run_ends_with_the_same_weights(arguments, tmp_path, stop, workers):
    """About 5 steps a pass: checkpoints in the first, in the second, and at the end."""
    options = STREAM | {
        "max_steps": 10,
        "save_strategy": "steps",
        "save_steps": stop,
        "gradient_accumulation_steps": 2,
        "lora_rank": 4,
        "lora_dropout": 0.1,
    }
    straight = train(arguments(**options, output_dir=str(tmp_path / "straight")))
    one_pass = sum(1 for _ in straight.train_dataset.one_pass(iter(range(1000))))
    assert 3 * 4 < one_pass < 8 * 4
    checkpoint = tmp_path / "straight" / f"checkpoint-{stop}"
    shutil.copytree(checkpoint, tmp_path / "resumed" / checkpoint.name)
    shutil.copy(tmp_path / "straight" / "metrics.jsonl", tmp_path / "resumed")
    resumed = train(
        arguments(
            **options,
            output_dir=str(tmp_path / "resumed"),
            resume_from_checkpoint="true",
            dataloader_num_workers=workers,
        )
    )
    assert not differing(weights(straight), weights(resumed))
    rows = [
        [(row["step"], row["loss"]) for row in read_metrics(path) if "loss" in row]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("straight", "resumed"))
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 10


def test_the_samples_of_a_run_and_its_records(arguments, corpus, monkeypatch):
    made = arguments(**STREAM, max_steps=9, eval_data=[str(corpus / "held_out")])
    trainer = set_up(made)
    assert isinstance(trainer.train_dataset, SampleStream)
    seen = []
    step = type(trainer).training_step

    def recorded(self, model, inputs, num_items_in_batch=None):
        seen.extend(inputs["sample_indices"])
        return step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(LrkTrainer, "training_step", recorded)
    train(made)
    expected = [sample["index"] for sample in islice(trainer.train_dataset, 18)]
    assert seen == expected
    assert seen != sorted(seen)
    folder = Path(made.output_dir)
    assert "| tokens in all | 576 |" in (folder / "README.md").read_text()
    assert "streaming: true" in (folder / "config.yaml").read_text()
    rows = read_metrics(folder / "metrics.jsonl")
    assert all(row["tokens_per_second"] > 0 for row in rows if "loss" in row)
    assert any("eval_256_loss" in row for row in rows)


def test_conversations_are_streamed(arguments, tmp_path):
    pair = {"prompt": "Who crossed it? ", "completion": "Nobody crossed it before spring."}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 9)
    trainer = train(arguments(**STREAM, data=[str(tmp_path / "pairs.jsonl")]))
    batch = trainer.data_collator(list(islice(trainer.train_dataset, 4)))
    kept = trainer.processing_class.decode(batch["labels"][batch["labels"] != -100])
    assert "Nobody" in kept
    assert "Who" not in kept


def test_a_dry_run_shows_what_a_stream_says(arguments):
    said = dry_run(arguments(**STREAM))
    assert "samples          of 32 tokens; a stream does not say how many" in said
    assert "shuffled         among 4 samples" in said
    assert "steps            2, 128 tokens in all" in said
    assert "epoch 0: positions and text of each segment" in said


def test_the_default_buffer_is_written_down(arguments):
    made = arguments(streaming=True)
    assert made.shuffle_buffer == 256
    assert "shuffle_buffer: 256" in made.to_yaml()
    assert "shuffle_buffer" not in arguments().to_yaml()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "max_steps is -1 with streaming; it must be positive"),
        ({"shuffle_buffer": -1}, "shuffle_buffer is -1; it must be 0 or positive"),
        ({"dataloader_num_workers": 2}, "dataloader_num_workers is 2 with streaming; .* 0 or 1"),
        ({"data_shares": [1.0]}, "data_shares is given with streaming; a stream reads one source"),
        ({"train_sampling_strategy": "sequential"}, "'sequential' with streaming"),
        ({"streaming": False, "shuffle_buffer": 4}, "shuffle_buffer is 4 without streaming"),
    ],
)
def test_arguments_that_do_not_go_with_a_stream(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**{"streaming": True} | changes)


def test_data_without_a_sample_show_before_the_weights_are_loaded(arguments, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("Too short.")
    monkeypatch.setattr("lrk.train.session.load_model", lambda _: pytest.fail("loads the model"))
    with pytest.raises(ValueError, match=r"the 1 documents hold .* tokens together"):
        set_up(arguments(streaming=True, data=[str(tmp_path / "short.txt")]))
