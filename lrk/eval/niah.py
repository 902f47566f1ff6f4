"""Needles in a haystack: RULER's eight tasks (arXiv 2404.06654, section 3), and the grid.

The wording is RULER's, in NVIDIA/RULER, `scripts/data/synthetic/constants.py` and `niah.py`
(Apache-2.0): it is the benchmark.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from lrk.eval.fitting import Draw, Trial
from lrk.eval.haystack import FILLER, Essay
from lrk.eval.prompt import Prompt
from lrk.eval.words import Words

MAX_NEW_TOKENS = 128

# Percentages between which needles are put into an essay.
DEPTHS = tuple(round(100 * step / 39) for step in range(40))


@dataclass(frozen=True)
class Needles:
    """One variant.

    Attributes:
        haystack: "noise" repeats the filler, "essay" is the user's text, "needle" is made of other
            needles.
        keys: "words" (adjective-noun) or "uuids".
        values: "numbers" (7 digits) or "uuids".
        num_keys: needles of different keys.
        num_values: needles of each key.
        num_queries: keys that are asked for.
    """

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


VARIANTS = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", values="uuids"),
    "niah_multikey_1": Needles("essay", num_keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", keys="uuids", values="uuids"),
    "niah_multivalue": Needles("essay", num_values=4),
    "niah_multiquery": Needles("essay", num_keys=4, num_queries=4),
}


def niah(needles: Needles, words: Words | None = None, essay: Essay | None = None) -> Draw:
    """The prompts of one variant; `size` counts lines of noise, other needles, or words of essay.

    Args:
        needles: the variant.
        words: needed for keys that are words.
        essay: needed for the haystack "essay".
    """
    total = needles.num_keys * needles.num_values

    def prompt(trial: Trial, size: int) -> Prompt:
        keys = [_random(needles.keys, trial, words) for _ in range(needles.num_keys)]
        values = [
            [_random(needles.values, trial, words) for _ in range(needles.num_values)] for _ in keys
        ]
        sentences = [
            _needle(needles.values, key, value)
            for key, of_key in zip(keys, values, strict=True)
            for value in of_key
        ]
        trial.shuffle(sentences)
        if essay is not None and needles.haystack == "essay":
            context, depths = _in_essay(trial, essay.sentences(size), sentences)
        else:
            lines = _lines(needles, trial, size, words)
            context, depths = _in_lines(trial, lines, sentences)
        asked = trial.sample(range(len(keys)), needles.num_queries)
        references = [value for index in asked for value in values[index]]
        return _question(
            needles.values,
            context,
            [keys[index] for index in asked],
            references,
            depths[0] if total == 1 else None,
        )

    return Draw(prompt, smallest=total)


@dataclass(frozen=True)
class GridNeedle:
    """A needle of the user's: the sentence, a question about it, and what an answer must hold."""

    sentence: str
    question: str
    answer: str


def grid(depth: float, needle: GridNeedle | None = None, essay: Essay | None = None) -> Draw:
    """One needle at a given depth: a cell of the heat map of length and depth.

    After Kamradt's "needle in a haystack" (github.com/gkamradt/LLMTest_NeedleInAHaystack). Without
    a needle of the user's it is RULER's, with a fixed key and a random number of 7 digits; without
    an essay the haystack is RULER's noise. The needle stands between two sentences.

    Args:
        depth: share of the haystack before the needle, 0 to 1.
    """

    def prompt(trial: Trial, size: int) -> Prompt:
        sentences = [FILLER] * size if essay is None else essay.sentences(size)
        place = round(depth * len(sentences))
        value = _random("numbers", trial, None)
        sentence = _needle("numbers", _GRID_KEY, value) if needle is None else needle.sentence
        separator = "\n" if essay is None else " "
        context = separator.join([*sentences[:place], sentence, *sentences[place:]])
        if needle is None:
            return _question("numbers", context, [_GRID_KEY], [value], depth)
        return Prompt(f"{context}\n\n{needle.question}", " Answer:", (needle.answer,), depth)

    return Draw(prompt)


_GRID_KEY = "long-context"


def _needle(values: str, key: str, value: str) -> str:
    return f"One of the special magic {values} for {key} is: {value}."


def _random(kind: str, trial: Trial, words: Words | None) -> str:
    if kind == "numbers":
        return str(trial.randint(10**6, 10**7 - 1))
    if kind == "uuids":
        return str(uuid.UUID(int=trial.getrandbits(128), version=4))
    assert kind == "words", kind
    assert words is not None
    return f"{trial.choice(words.adjectives)}-{trial.choice(words.nouns)}"


def _lines(needles: Needles, trial: Trial, size: int, words: Words | None) -> list[str]:
    if needles.haystack == "noise":
        return [FILLER] * size
    assert needles.haystack == "needle", needles.haystack

    def draw(kind: str) -> str:
        return _random(kind, trial, words)

    return [_needle(needles.values, draw(needles.keys), draw(needles.values)) for _ in range(size)]


def _in_lines(trial: Trial, lines: list[str], needles: Sequence[str]) -> tuple[str, list[float]]:
    """Needles before different lines; each is as deep as the share of lines before it."""
    places = sorted(trial.sample(range(len(lines)), len(needles)))
    # From the back, so that the places of the others stay what they are.
    for place, needle in zip(reversed(places), needles, strict=True):
        lines.insert(place, needle)
    return "\n".join(lines), [place / (len(lines) - len(needles)) for place in places]


def _in_essay(
    trial: Trial, sentences: list[str], needles: Sequence[str]
) -> tuple[str, list[float]]:
    """Needles between sentences, at different ones of 40 depths."""
    depths = [percent / 100 for percent in sorted(trial.sample(DEPTHS, len(needles)))]
    places = [int(len(sentences) * depth) for depth in depths]
    parts: list[str] = []
    for start, stop, needle in zip([0, *places], places, needles, strict=False):
        parts += [*sentences[start:stop], needle]
    return " ".join([*parts, *sentences[places[-1] :]]), depths


def _question(
    values: str, context: str, keys: Sequence[str], references: Sequence[str], depth: float | None
) -> Prompt:
    query = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    one = len(references) == 1
    kind = values.removesuffix("s") if one else values
    some, are, are_all = ("A", "is", "is") if one else ("Some", "are", "are all")
    text = (
        f"{some} special magic {kind} {are} hidden within the following text. Make sure to "
        f"memorize it. I will quiz you about the {kind} afterwards.\n{context}\nWhat {are_all} the "
        f"special magic {kind} for {query} mentioned in the provided text?"
    )
    prefix = f" The special magic {kind} for {query} mentioned in the provided text {are}"
    return Prompt(text, prefix, tuple(references), depth)
