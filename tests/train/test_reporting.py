"""What transformers' reporters are given: the losses of `metrics.jsonl`, by their names."""

import pytest

from lrk.train import train
from lrk.train.telemetry import read_metrics


def test_tensorboard(arguments, corpus, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    train(
        arguments(
            report_to="tensorboard",
            eval_data=[str(corpus / "held_out")],
            eval_samples=2,
            eval_strategy="steps",
            eval_steps=1,
        )
    )
    curves = event_accumulator.EventAccumulator(str(tmp_path / "curves"))
    curves.Reload()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for name, curve, steps in (
        ("loss", "train/loss", [1, 2]),
        ("tokens_per_second", "train/tokens_per_second", [1, 2]),
        ("eval_256_loss", "eval/256_loss", [0, 1, 2]),
    ):
        logged = [(row["step"], row[name]) for row in rows if name in row]
        drawn = [(event.step, event.value) for event in curves.Scalars(curve)]
        assert [step for step, _ in drawn] == steps
        assert drawn == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged]
