"""Progress in a terminal and in a log."""

import io
import sys
from types import SimpleNamespace

import pytest

from lrk import progress as module
from lrk.progress import progress, tracked


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


def test_a_log_has_a_line_a_minute_at_most(clock, capsys):
    with progress("step", 10, done=2) as advance:
        for _ in range(6):
            clock.now += 25
            advance(note="loss 1.5")
    assert capsys.readouterr().err.splitlines() == [
        "step: 5 of 10 loss 1.5",
        "step: 8 of 10 loss 1.5",
    ]


def test_a_log_says_nothing_of_what_is_short(clock, capsys):
    assert list(tracked(range(3), "rows", 3)) == [0, 1, 2]
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_that_ends_whole(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("lrk-eval, trials", 4) as advance:
        advance(0, note="passkey at 450")
        advance(4)
    said = terminal.getvalue()
    assert "lrk-eval, trials" in said
    assert "4/4" in said
    assert "passkey at 450" in said
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1  # the cursor is back


def test_what_goes_to_a_file_stays_there_beside_a_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("step", 4):
        print("eval_256_loss 1.5")
    assert capsys.readouterr().out == "eval_256_loss 1.5\n"
    assert "eval_256_loss" not in terminal.getvalue()


def test_an_interruption_takes_the_bar_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    def interrupted() -> None:
        with progress("step", 4) as advance:
            advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().count("\x1b[?25h") == 1
