"""How commands end."""

import errno
import os

import pytest

from lrk.atomic import SaveError
from lrk.command import RunError, run_command


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("window is 0; it must be positive"), 2, "window is 0; it must be positive"),
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


def test_a_fault_of_ours_stays_a_traceback():
    with pytest.raises(KeyError):
        run_command("lrk-x", lambda: {}["a"])
