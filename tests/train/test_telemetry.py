import json
import math
from types import SimpleNamespace

from transformers import TrainerState, TrainingArguments

from lrk.train.telemetry import MetricsFile, ProgressBar, Throughput, read_metrics


def test_throughput_counts_steps_but_not_evaluations_or_saves(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lrk.train.telemetry.time.perf_counter", lambda: clock.now)
    throughput = Throughput()
    throughput.on_train_begin(TrainingArguments(), TrainerState())
    assert math.isnan(throughput.read())
    for pause in (throughput.on_evaluate, throughput.on_save):
        throughput.tokens += 100
        clock.now += 2
        throughput.on_step_end()
        clock.now += 50
        pause()
    assert throughput.read() == 50
    throughput.tokens += 30
    clock.now += 1
    throughput.on_step_end()
    assert throughput.read() == 30


def test_resuming_begins_with_the_history_of_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    history = [{"loss": 1.0, "step": 1}, {"loss": 1.0, "step": 2}]
    state = SimpleNamespace(is_world_process_zero=True, global_step=2, log_history=history)
    file = MetricsFile(path)
    file.on_train_begin(None, state, None)
    assert read_metrics(path) == rows[:2]
    state.global_step = 3
    file.on_log(None, state, None, logs={"loss": 0.5})
    assert read_metrics(path)[-1] == {"step": 3, "loss": 0.5}


def test_a_last_line_that_was_cut_short_is_not_read(tmp_path):
    (tmp_path / "m").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(tmp_path / "m") == [{"step": 1}]


def test_other_processes_write_nothing(tmp_path):
    state = SimpleNamespace(is_world_process_zero=False, global_step=1)
    MetricsFile(tmp_path / "m").on_log(None, state, None, logs={"loss": 0.5})
    assert not (tmp_path / "m").exists()


def test_the_evaluation_after_the_last_step_is_printed_too(capsys):
    bar, state = ProgressBar(), TrainerState(max_steps=2, global_step=2)
    bar.on_train_begin(None, state)
    bar.on_train_end()
    bar.on_log(None, state, None, logs={"eval_256_loss": 1.5})
    assert capsys.readouterr().out == "step 2: eval_256_loss 1.5000\n"
    state.is_world_process_zero = False
    bar.on_log(None, state, None, logs={"eval_256_loss": 1.5})
    assert capsys.readouterr().out == ""
