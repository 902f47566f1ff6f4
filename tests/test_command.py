"""How commands end."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lrk.atomic import SaveError
from lrk.command import RunError, run_command
from lrk.field_types import check_types


@dataclass
class Arguments:
    count: int = "a"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (RunError("the gradient is NaN"), 1, "the gradient is NaN"),
        (SaveError("'a' could not be saved"), 1, "'a' could not be saved"),
        (
            OSError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"),
            1,
            "'/root/x': Permission denied",
        ),
        (KeyboardInterrupt(), 130, "interrupted; run it again"),
    ],
)
def test_an_expected_end_is_a_status_and_a_sentence(error, status, sentence, capsys):
    def run() -> int:
        raise error

    assert run_command("lrk-x", run, "run it again") == status
    assert capsys.readouterr().err == f"lrk-x: {sentence}\n"


def test_bad_input_is_a_sentence_and_that_of_others_says_whose_it_is(capsys):
    def ours() -> int:
        return check_types(Arguments())  # type: ignore[func-returns-value]

    def theirs() -> int:
        return len(json.loads("{"))

    assert run_command("lrk-x", ours) == run_command("lrk-x", theirs) == 2
    of_ours, of_others = capsys.readouterr().err.splitlines()
    assert of_ours == "lrk-x: count is 'a', of type str; it must be int"
    assert re.fullmatch(r"lrk-x: Expecting .* \(raised by json.decoder, line \d+\)", of_others)


def test_a_fault_of_ours_stays_a_traceback():
    with pytest.raises(KeyError):
        run_command("lrk-x", lambda: {}["a"])


def test_a_reader_that_has_enough_is_no_fault():
    """As `head` is, which closes the pipe; nothing is said at exit either."""
    code = """
import sys
from lrk.command import run_command
sys.exit(run_command("lrk-x", lambda: print("a line\\n" * 100_000) or 0))
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "a line\n"
    writer.stdout.close()
    assert writer.stderr.read() == ""
    assert writer.wait() == 128 + signal.SIGPIPE
