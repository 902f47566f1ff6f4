"""How much haystack fits a length in tokens, and the trials that are drawn with it.

A trial is a pure function of (seed, task, length, number), whatever order trials are run in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lrk.eval.prompt import Encoder, Prompt

GUESSES = 8
"""By proportion, before a size is found by doubling and bisection."""
WIDEST_GUESS = 64
"""Times the size that was tried last."""


class Trial(Random):
    """The random numbers of one trial, and its number."""

    def __new__(cls, seed: int, task: str, length: int, index: int) -> "Trial":
        return super().__new__(cls)

    def __init__(self, seed: int, task: str, length: int, index: int) -> None:
        super().__init__(f"{seed} {task} {length} {index}")
        self.index = index


@dataclass(frozen=True)
class Draw:
    """How the prompts of a task are made at one length.

    Attributes:
        prompt: the prompt of a trial, with a haystack of so many units (sentences, words, ...).
        smallest: fewest units that make sense.
        largest: most units that there are; None for no limit.
        largest_reason: what to say where more than `largest` would fit.
    """

    prompt: Callable[[Trial, int], Prompt]
    smallest: int = 1
    largest: int | None = None
    largest_reason: str = ""


@dataclass(frozen=True)
class Trials:
    """Trials of a task that fit `length` tokens, the answer included.

    The size of the haystack is found once, on trial 0, and lowered by one per cent at a time for a
    trial that comes out longer. RULER does the same in fixed steps of the size.

    Attributes:
        task: its name, which seeds the trials.
        draw: how its prompts are made.
        encoder: prompts to ids.
        length: tokens of the prompt and of the answer together, at most.
        max_new_tokens: tokens kept free for the answer.
        seed: of all trials.
    """

    task: str
    draw: Draw
    encoder: Encoder
    length: int
    max_new_tokens: int
    seed: int

    def check(self) -> None:
        """Raise what `size` raises, which costs the shortest prompt alone where nothing runs out.

        Raises:
            ValueError: see `size`.
        """
        if self.draw.largest is None:
            self._shortest()
        else:
            self.size()

    def size(self) -> int:
        """Units of haystack for a trial of average length.

        Raises:
            ValueError: if not even the smallest haystack fits, or there is not enough of it.
        """
        smallest, largest = self.draw.smallest, self.draw.largest
        room = self.length - self.max_new_tokens
        shortest = tokens = self._shortest()
        fits, too_large, probe = smallest, None if largest is None else largest + 1, 2 * smallest
        # A long prompt takes a quarter of a second to encode: a few guesses by proportion spare
        # most of what bisection alone would encode. Where they go wrong, it goes on alone.
        guesses = GUESSES
        while too_large is None or too_large - fits > 1:
            probe = max(probe, fits + 1)
            if too_large is not None:
                probe = min(probe, too_large - 1)
            found = self._tokens(probe)
            if found <= room:
                fits, tokens = probe, found
            else:
                too_large = probe
            guesses -= 1
            if guesses > 0:
                a_unit = max(found - shortest, 1) / (probe - smallest)
                # The first prompts are too short to trust them for a jump of any width.
                probe = min(fits + int((room - tokens) / a_unit), WIDEST_GUESS * probe)
            else:
                probe = 2 * fits if too_large is None else (fits + too_large) // 2
        if fits == largest:
            raise ValueError(
                f"length {self.length} of task {self.task}: {self.draw.largest_reason}"
            )
        return fits

    def __call__(self, index: int, size: int) -> tuple[Prompt, list[int]]:
        """Prompt and token ids of one trial, with a haystack of `size` units or a little less.

        Raises:
            ValueError: if it does not fit with the smallest haystack.
        """
        while True:
            prompt = self._prompt(index, size)
            ids = self.encoder(prompt)
            if len(ids) + self.max_new_tokens <= self.length:
                return prompt, ids
            if size <= self.draw.smallest:
                raise ValueError(
                    f"length {self.length} is too short for trial {index} of task {self.task}"
                )
            size = max(size - max(size // 100, 1), self.draw.smallest)

    def _shortest(self) -> int:
        """Tokens of trial 0 with the smallest haystack, which must fit."""
        tokens = self._tokens(self.draw.smallest)
        if tokens + self.max_new_tokens > self.length:
            raise ValueError(
                f"length {self.length} is too short for task {self.task}: its shortest prompt has "
                f"{tokens} tokens and its answer {self.max_new_tokens}"
            )
        return tokens

    def _prompt(self, index: int, size: int) -> Prompt:
        return self.draw.prompt(Trial(self.seed, self.task, self.length, index), size)

    def _tokens(self, size: int) -> int:
        return len(self.encoder(self._prompt(0, size)))
