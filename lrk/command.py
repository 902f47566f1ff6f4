"""How every command ends: with a status, and one sentence where something went wrong."""

import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable

from lrk.progress import quiet_bars


class RunError(RuntimeError):
    """A run that cannot go on; the sentence says what is left of it."""


class Interrupted(KeyboardInterrupt):
    """A run that was stopped by a signal, in order; the sentence says how to go on."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = 128 + number


def run_command(program: str, run: Callable[[], int], go_on: str = "") -> int:
    """The status of `run`.

    2 after a sentence on bad input, 1 after one on what could not be read, written or gone on with,
    130 after an interruption, or 128 and the number of the signal.

    Args:
        go_on: how the user goes on after an interruption.
    """
    _leave_out_noise()
    try:
        status = run()
        sys.stdout.flush()
        return status
    except ValueError as error:
        return _ended(program, 2, str(error) + _origin(error))
    except RunError as error:
        return _ended(program, 1, str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 128 + signal.SIGPIPE
        return _ended(program, 1, _sentence(error))
    except Interrupted as error:
        return _ended(program, error.status, str(error))
    except KeyboardInterrupt:
        return _ended(program, 130, f"interrupted{'; ' if go_on else ''}{go_on}")


def quiet_bitsandbytes() -> None:
    """Keep off stderr that bitsandbytes lacks one kernel on a CPU, for which it has another way.

    peft, and so transformers' trainer, imports it where it is installed, for 4 bits or not.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _leave_out_noise() -> None:
    """Keep off stderr what says nothing of the command: bars in a log, and two warnings.

    peft asks a model with adapters by a name that transformers has renamed since.
    """
    quiet_bars()
    quiet_bitsandbytes()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)


def _reader_has_left() -> bool:
    """Whether who read the output, such as `head`, has enough; what is left of it is dropped."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    has_left = any(events & select.POLLERR for _, events in output.poll(0))
    if has_left:
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return has_left


def _origin(error: ValueError) -> str:
    """Where an error was raised that is not one of our sentences, for a report of a fault."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    module = "lrk" if frames is None else str(frames.tb_frame.f_globals.get("__name__"))
    if frames is None or module.partition(".")[0] == "lrk":
        return ""
    return f" (raised by {module}, line {frames.tb_lineno})"


def _sentence(error: OSError) -> str:
    """`PATH: reason`; our own SaveError says both itself."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{str(error.filename)!r}: {error.strerror}"


def _ended(program: str, status: int, sentence: str) -> int:
    # What it quotes of a file may hold line breaks and commands to the terminal.
    line = "".join(each if each.isprintable() else " " for each in sentence)
    print(f"{program}: {line}", file=sys.stderr)
    return status
