"""Stopping between two steps, and checkpoints by time."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from lrk.command import Interrupted
from lrk.train import train
from lrk.train.checkpoints import checkpoints, damage
from lrk.train.command import main
from lrk.train.interruption import Signals
from lrk.train.session import run, set_up


@pytest.fixture(autouse=True)
def _at_a_terminal():
    """The handlers of a process that nobody started in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Send(TrainerCallback):
    """A signal to this process in step `step`, or in the first evaluation."""

    def __init__(self, number: int, step: int | None) -> None:
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.step is None:
            os.kill(os.getpid(), self.number)
            self.step = 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, None], ids=["in a step", "in an evaluation"])
def test_the_step_is_finished_and_the_run_goes_on_from_it(
    arguments, corpus, tmp_path, number, step
):
    options = {
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
        "eval_data": [str(corpus / "held_out")],
        "eval_strategy": "steps",
        "eval_steps": 3,
        "eval_on_start": False,
        "save_strategy": "no",
    }
    straight = tmp_path / "straight"
    train(arguments(**options, output_dir=str(straight)))
    trainer = set_up(arguments(**options))
    trainer.add_callback(Send(number, step))
    with pytest.raises(Interrupted, match=r"after step 3, which is in '.*checkpoint-3'") as caught:
        run(trainer)
    assert caught.value.status == 128 + number
    folder = Path(trainer.args.output_dir)
    assert list(checkpoints(folder)) == [3]
    assert damage(folder / "checkpoint-3") is None
    assert not (folder / "model.safetensors").exists()
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)

    train(arguments(**options, resume_from_checkpoint="true"))
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_signal_before_the_first_step_ends_the_run_after_it(arguments, corpus, tmp_path):
    """The evaluation of the untouched model is left, and not made again by the run that goes on."""
    options = {"max_steps": 2, "eval_data": [str(corpus / "held_out")], "save_strategy": "no"}
    trainer = set_up(arguments(**options))
    trainer.add_callback(Send(signal.SIGINT, None))
    with pytest.raises(Interrupted, match=r"after step 1, which is in '.*checkpoint-1'"):
        run(trainer)
    again = train(arguments(**options, resume_from_checkpoint="true"))
    straight = train(arguments(**options, output_dir=str(tmp_path / "straight")))
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_after_the_last_step_the_final_evaluation_is_left_to_the_next_start(arguments, corpus):
    options = {"max_steps": 2, "eval_data": [str(corpus / "held_out")], "save_strategy": "no"}
    options["eval_on_start"] = False
    trainer = set_up(arguments(**options))
    trainer.add_callback(Send(signal.SIGINT, None))
    with pytest.raises(Interrupted, match="after step 2"):
        run(trainer)
    trainer = train(arguments(**options, resume_from_checkpoint="true"))
    assert (Path(trainer.args.output_dir) / "model.safetensors").exists()
    assert any("eval_256_loss" in row for row in trainer.state.log_history)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_job_kills_no_worker(arguments, number):
    class SendToAll(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            workers = [str(child.pid) for child in multiprocessing.active_children()]
            assert len(workers) == 2
            # Not from this process, which may end its workers.
            subprocess.run(["kill", f"-{number.value}", *workers, str(os.getpid())], check=True)

    trainer = set_up(arguments(max_steps=6, save_strategy="no", dataloader_num_workers=2))
    trainer.add_callback(SendToAll())
    with pytest.raises(Interrupted) as caught:
        run(trainer)
    assert caught.value.status == 128 + number
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0, "the process that has it may"


def test_of_a_model_alone_it_is_not_said_that_it_goes_on(arguments):
    trainer = set_up(arguments(max_steps=3, save_only_model=True))
    trainer.add_callback(Send(signal.SIGTERM, 1))
    with pytest.raises(Interrupted, match="no run goes on from there, since save_only_model"):
        run(trainer)


def test_the_second_signal_stops_at_once():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(Interrupted, match="stopped at once") as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.status == 143
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.received is None
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_the_command_says_in_one_line_how_to_go_on(options, capfd):
    """As a scheduler meets it: a signal at any moment of the training, a status."""
    metrics = Path(options["output_dir"]) / "metrics.jsonl"

    def terminate():
        while not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=terminate)
    sender.start()
    words = options | {"data": options["data"][0], "max_steps": 100_000}
    assert main([f"--{name}={value}" for name, value in words.items()]) == 143
    sender.join()
    lines = capfd.readouterr().err.splitlines()
    assert "SIGTERM: this step is finished and saved; again to stop at once" in lines
    assert lines[-1].startswith("lrk-train: stopped by SIGTERM after step ")
    assert lines[-1].endswith("the same command with --resume_from_checkpoint true goes on")
    assert len(checkpoints(Path(options["output_dir"]))) == 1


def test_checkpoints_by_time(arguments, monkeypatch):
    """A minute passes with every reading of the clock: one reading a step."""
    now = [0.0]

    def minutes():
        now[0] += 60
        return now[0]

    monkeypatch.setattr("lrk.train.interruption.time.monotonic", minutes)
    trainer = train(arguments(max_steps=7, save_strategy="no", save_minutes=3))
    assert list(checkpoints(Path(trainer.args.output_dir))) == [3, 6]


def test_minutes_are_not_negative(arguments):
    with pytest.raises(ValueError, match=r"save_minutes is -1.0; it must be 0 or positive"):
        arguments(save_minutes=-1)


def test_two_runs_in_one_folder(arguments, capsys, options):
    """Nothing is written by the one that comes second."""
    folder = Path(options["output_dir"])
    first, second = set_up(arguments(seed=1)), set_up(arguments(seed=2))

    class Second(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 0:
                with pytest.raises(ValueError, match="another process is writing to"):
                    run(second)

    first.add_callback(Second())
    run(first)
    assert "seed: 1" in (folder / "config.yaml").read_text()
    with pytest.raises(ValueError, match="holds another run"):
        run(second)
    words = options | {"data": options["data"][0]}
    assert main([f"--{name}={value}" for name, value in words.items()]) == 2
    assert "holds another run" in capsys.readouterr().err
