"""RULER's variable tracking, `vt` (arXiv 2404.06654, section 3): 1 chain of 4 hops in noise.

The wording is RULER's, in NVIDIA/RULER, `scripts/data/synthetic/constants.py` and
`variable_tracking.py` (Apache-2.0): it is the benchmark.
"""

import string

from lrk.eval.fitting import Draw, Trial
from lrk.eval.haystack import FILLER
from lrk.eval.prompt import Encoder, Prompt

HOPS = 4
MAX_NEW_TOKENS = 30

# The worked example before the question: at most so many tokens, names of 3 letters, not 5.
EXAMPLE_TOKENS = 500
EXAMPLE_LETTERS = 3
LETTERS = 5


def variable_tracking(encoder: Encoder, seed: int) -> Draw:
    """A worked example, then the chain among `size` lines of noise.

    Args:
        encoder: measures the worked example.
        seed: of the trial that it is measured on.

    Raises:
        ValueError: if a tokenizer cannot write the shortest example in 500 tokens.
    """
    example_size = _example_size(encoder, seed)

    def prompt(trial: Trial, size: int) -> Prompt:
        example = _chain_in_noise(trial, example_size, EXAMPLE_LETTERS)
        asked = _chain_in_noise(trial, size, LETTERS)
        worked = f"{example.text}{example.answer_prefix} {' '.join(example.references)}\n"
        return Prompt(f"{worked}\n{asked.text}", asked.answer_prefix, asked.references)

    return Draw(prompt, smallest=HOPS + 1)


def _example_size(encoder: Encoder, seed: int) -> int:
    """Lines of noise with which the worked example has at most 500 tokens."""
    size = HOPS + 1
    while True:
        trial = Trial(seed, "vt example", EXAMPLE_TOKENS, 0)
        prompt = _chain_in_noise(trial, size, EXAMPLE_LETTERS)
        tokens = len(encoder.tokenizer(prompt.text + prompt.answer_prefix).input_ids)
        if tokens > EXAMPLE_TOKENS:
            break
        size += 1
    if size == HOPS + 1:
        raise ValueError(
            f"task vt cannot be written with this tokenizer: its worked example may have "
            f"{EXAMPLE_TOKENS} tokens, and the shortest has {tokens}"
        )
    return size - 1


def _chain_in_noise(trial: Trial, size: int, letters: int) -> Prompt:
    names: list[str] = []
    while len(names) < HOPS + 1:
        name = "".join(trial.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    value = str(trial.randrange(10_000, 99_999))
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {names[hop + 1]} = VAR {names[hop]} " for hop in range(HOPS)]
    lines = [FILLER] * size
    # A chain keeps its order; two of its links may be neighbours.
    for link, place in enumerate(sorted(trial.sample(range(size), len(chain)))):
        lines.insert(place + link, chain[link])
    context = "\n".join(lines)
    text = (
        "Memorize and track the chain(s) of variable assignment hidden in the following text."
        f"\n\n{context}\nQuestion: Find all variables that are assigned the value {value} in the "
        "text above."
    )
    prefix = (
        " Answer: According to the chain(s) of variable assignment in the text above, "
        f"{len(names)} variables are assigned the value {value}, they are: "
    )
    return Prompt(text, prefix, tuple(names))
