"""Passkey retrieval (Mohtashami and Jaggi, arXiv 2305.16300, section 4.2).

The wording is the published one: it is the task.
"""

from lrk.eval.fitting import Draw, Trial
from lrk.eval.haystack import FILLER
from lrk.eval.prompt import Prompt

LARGEST_KEY = 50_000
MAX_NEW_TOKENS = 10
TRIALS = 50

_INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
    "them. I will quiz you about the important information there."
)


def passkey() -> Draw:
    """A key from 1 to 50,000 at a uniformly random place among `size` repetitions of the filler."""
    return Draw(_prompt)


def _prompt(trial: Trial, size: int) -> Prompt:
    before = trial.randint(0, size)
    key = trial.randint(1, LARGEST_KEY)
    lines = [
        _INSTRUCTION,
        " ".join([FILLER] * before),
        f"The pass key is {key}. Remember it. {key} is the pass key.",
        " ".join([FILLER] * (size - before)),
        "What is the pass key?",
    ]
    return Prompt("\n".join(lines), " The pass key is", (str(key),), before / size)
