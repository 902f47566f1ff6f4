"""How every command ends: with a status, and one sentence where something went wrong."""

import sys
from collections.abc import Callable


class RunError(RuntimeError):
    """A run that cannot go on; the sentence says what is left of it."""


def run_command(program: str, run: Callable[[], int], go_on: str = "") -> int:
    """The status of `run`.

    2 after a sentence on bad input, 1 after one on what could not be read, written or gone on with,
    130 after an interruption.

    Args:
        go_on: how the user goes on after an interruption.
    """
    try:
        return run()
    except ValueError as error:
        return _ended(program, 2, str(error))
    except RunError as error:
        return _ended(program, 1, str(error))
    except OSError as error:
        return _ended(program, 1, _sentence(error))
    except KeyboardInterrupt:
        return _ended(program, 130, f"interrupted{'; ' if go_on else ''}{go_on}")


def _sentence(error: OSError) -> str:
    """`PATH: reason`; our own SaveError says both itself."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{str(error.filename)!r}: {error.strerror}"


def _ended(program: str, status: int, sentence: str) -> int:
    print(f"{program}: {sentence}", file=sys.stderr)
    return status
