"""What hostile or foreign input comes to: a right value, one sentence, or a fault."""

import io
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

RIGHT, SENTENCE, FAULT = "right", "sentence", "fault"


class Outcome(NamedTuple):
    """How one call ended; `text` is its sentence, or its traceback."""

    kind: str
    text: str = ""


def of_command(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> Outcome:
    """A command's: exit 0, or 1 or 2 with one line on the standard error."""
    out, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            status = main(argv)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 2
    # Whatever else is raised would be a traceback for the user.
    except BaseException:
        return Outcome(FAULT, traceback.format_exc())
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("lrk-")]
    if status == 0:
        return Outcome(RIGHT, out.getvalue())
    if status in (1, 2) and len(lines) == 1:
        return Outcome(SENTENCE, lines[0])
    return Outcome(FAULT, f"status {status}, standard error {errors.getvalue()!r}")


def of_call(call: Callable[[], object], sentences: type[Exception] | tuple = ValueError) -> Outcome:
    """A Python call's: it returns (after checking its own value), or raises one sentence."""
    try:
        call()
    except sentences as error:
        text = str(error)
        return Outcome(SENTENCE if text and "\n" not in text else FAULT, text)
    except BaseException:
        return Outcome(FAULT, traceback.format_exc())
    return Outcome(RIGHT)


def judge(outcomes: Iterable[tuple[object, Outcome]]) -> None:
    """Print how many there were of each kind, and fail for the first faults, with their inputs."""
    listed = list(outcomes)
    counts = Counter(outcome.kind for _, outcome in listed)
    print(f"{len(listed)} tried: {counts[RIGHT]} right, {counts[SENTENCE]} sentences")
    faults = [f"{given!r}:\n{outcome.text}" for given, outcome in listed if outcome.kind == FAULT]
    assert not faults, f"{len(faults)} of {len(listed)} faults\n" + "\n\n".join(faults[:5])
