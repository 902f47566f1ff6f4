"""How much haystack fits a length in tokens, and the trials that are drawn with it.

A trial is a pure function of (seed, task, length, number), whatever order trials are run in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lrk.eval.prompt import Encoder, Prompt


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

    The size of the haystack is found once, by bisection on trial 0, and lowered by one per cent at
    a time for a trial that comes out longer. RULER does the same in fixed steps of the size.

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

    def size(self) -> int:
        """Units of haystack for a trial of average length.

        Raises:
            ValueError: if not even the smallest haystack fits, or there is not enough of it.
        """
        low, largest = self.draw.smallest, self.draw.largest
        if not self._fits(0, low):
            raise ValueError(
                f"length {self.length} is too short for task {self.task}: its shortest prompt has "
                f"{len(self.encoder(self._prompt(0, low)))} tokens and its answer "
                f"{self.max_new_tokens}"
            )
        high = 2 * low
        while (largest is None or high <= largest) and self._fits(0, high):
            low, high = high, 2 * high
        if largest is not None and high > largest:
            if low <= largest and self._fits(0, largest):
                raise ValueError(
                    f"length {self.length} of task {self.task}: {self.draw.largest_reason}"
                )
            high = largest
        while high - low > 1:
            middle = (low + high) // 2
            if self._fits(0, middle):
                low = middle
            else:
                high = middle
        return low

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

    def _prompt(self, index: int, size: int) -> Prompt:
        return self.draw.prompt(Trial(self.seed, self.task, self.length, index), size)

    def _fits(self, index: int, size: int) -> bool:
        ids = self.encoder(self._prompt(index, size))
        return len(ids) + self.max_new_tokens <= self.length
