"""RULER's common words extraction, `cwe` (arXiv 2404.06654, section 3).

The wording is RULER's, in NVIDIA/RULER, `scripts/data/synthetic/constants.py` and
`common_words_extraction.py` (Apache-2.0): it is the benchmark.
"""

from collections.abc import Sequence

from lrk.eval.fitting import Draw, Trial
from lrk.eval.prompt import Prompt
from lrk.eval.words import Words

COMMON_WORDS = 10
MAX_NEW_TOKENS = 120


def common_words(length: int, words: Words, larger: Sequence[str] | None = None) -> Draw:
    """10 words that occur 30 times among others that occur 3 times, after a worked example.

    `size` counts the different words. Below 4,096 tokens, as in RULER, 6 times and once.

    Args:
        length: tokens of a trial.
        words: the lists of wonderwords.
        larger: RULER's `english_words.json`, drawn from where the lists have too few words.
    """
    listed = words.all()
    short = length < 4096
    common, uncommon = (6, 1) if short else (30, 3)
    example = (20, 3, 1) if short else (40, 10, 3)

    def prompt(trial: Trial, size: int) -> Prompt:
        worked = _prompt(trial, listed, *example)
        pool = listed if size <= len(listed) or larger is None else larger
        asked = _prompt(trial, pool, size, common, uncommon)
        answer = " ".join(f"{rank}. {word}" for rank, word in enumerate(worked.references, 1))
        text = f"{worked.text}{worked.answer_prefix} {answer}\n{asked.text}"
        return Prompt(text, asked.answer_prefix, asked.references)

    return Draw(
        prompt,
        smallest=COMMON_WORDS + 1,
        largest=max(len(listed), len(larger or ())),
        largest_reason=(
            f"wonderwords has {len(listed)} different words and more are needed; words must name "
            "RULER's english_words.json or a longer list"
            if larger is None
            else f"words has {len(larger)} words and more are needed"
        ),
    )


def _prompt(
    trial: Trial, pool: Sequence[str], size: int, times_common: int, times_uncommon: int
) -> Prompt:
    drawn = trial.sample(pool, size)
    common, uncommon = drawn[:COMMON_WORDS], drawn[COMMON_WORDS:]
    listed = common * times_common + uncommon * times_uncommon
    trial.shuffle(listed)
    numbered = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
    text = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        f"Memorize the ones that appear most often.\n{numbered}\nQuestion: What are the "
        f"{COMMON_WORDS} most common words in the above list?"
    )
    prefix = f" Answer: The top {COMMON_WORDS} words that appear most often in the list are:"
    return Prompt(text, prefix, tuple(common))
