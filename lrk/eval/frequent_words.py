"""RULER's frequent words extraction, `fwe` (arXiv 2404.06654, section 3).

The wording is RULER's, in NVIDIA/RULER, `scripts/data/synthetic/constants.py` and
`freq_words_extraction.py` (Apache-2.0): it is the benchmark.
"""

import math
import string

from lrk.eval.fitting import Draw, Trial
from lrk.eval.prompt import Prompt

ALPHA = 2
ZETA_OF_ALPHA = math.pi**2 / 6
LETTERS = 6
MAX_NEW_TOKENS = 50
NOISE = "..."

# From here on the counts of ranks 4 and 5 differ by one at least: (1/16 - 1/25) / zeta(2) * 74 > 1.
SMALLEST = 74


def frequent_words(length: int) -> Draw:
    """Coded words with zeta-distributed frequencies: rank k occurs n k^-2 / zeta(2) times.

    Rank 1 is noise, ranks 2 to 4 are asked for. `size` is n. The vocabulary has a word for every
    50 tokens of the prompt.

    Raises:
        ValueError: if the vocabulary would not have the ranks that are asked for.
    """
    vocabulary_size = (length - MAX_NEW_TOKENS) // 50
    if vocabulary_size < 5:
        raise ValueError(f"length {length} is too short for task fwe; it needs 300 tokens or more")

    def prompt(trial: Trial, size: int) -> Prompt:
        vocabulary: dict[str, None] = {}
        while len(vocabulary) < vocabulary_size - 1:
            vocabulary["".join(trial.choices(string.ascii_lowercase, k=LETTERS))] = None
        ranked = [NOISE, *vocabulary]
        coded = [
            word for rank, word in enumerate(ranked, 1) for _ in range(occurrences(size, rank))
        ]
        trial.shuffle(coded)
        text = (
            "Read the following coded text and track the frequency of each coded word. Find the "
            f"three most frequently appeared coded words. {' '.join(coded)}\nQuestion: Do not "
            "provide any explanation. Please ignore the dots '....'. What are the three most "
            "frequently appeared words in the above coded text?"
        )
        prefix = (
            " Answer: According to the coded text above, the three most frequently appeared words "
            "are:"
        )
        return Prompt(text, prefix, tuple(ranked[1:4]))

    return Draw(prompt, smallest=SMALLEST)


def occurrences(size: int, rank: int) -> int:
    """How often the word of a rank, from 1, occurs; rounded down."""
    return int(size * rank**-ALPHA / ZETA_OF_ALPHA)
