"""Held-out losses out of what a run logged."""

import re
from collections.abc import Sequence
from typing import Any

_EVALUATION = re.compile(r"eval_(\d+)_loss")

# By simulated length.
Losses = dict[int, float]


def losses_by_step(history: Sequence[dict[str, Any]]) -> dict[int, Losses]:
    """The losses of each evaluation; the one at step 0 is of the untouched model.

    Args:
        history: rows with a `step`.
    """
    found: dict[int, Losses] = {}
    for row in history:
        for name, value in row.items():
            if match := _EVALUATION.fullmatch(name):
                found.setdefault(row["step"], {})[int(match[1])] = value
    return found
