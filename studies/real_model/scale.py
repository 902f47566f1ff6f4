"""How large the study is: windows, training time, and how much is asked of each model."""

from dataclasses import asdict, dataclass
from typing import Any

from lrk.train.arguments import TRAIN_SHARE


@dataclass(frozen=True)
class Scale:
    """The numbers of a study.

    Attributes:
        target: tokens that the window is extended to.
        seconds: of training, for each model that has all of the time.
        trials: passkeys at each length and seed, and needles over all depths together.
        documents: held-out texts of `target` tokens that losses are computed on.
        window: tokens that the pretrained model reads.
        depths: of the needles, in per cent.
        bins: intervals of the loss by position.
        answer_tokens: generated at most. A needle is a space and seven digits; the 128 of RULER
            would take longer than most prompts.
        layers: of the pretrained model, from the first on; None takes all.
        files: of those that are trained on, and of those held out; None takes all.

    Raises:
        ValueError: in one sentence, for numbers that no study can have.
    """

    target: int
    seconds: float
    trials: int
    documents: int
    window: int = 8_192
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    bins: int = 32
    answer_tokens: int = 12
    layers: int | None = None
    files: int | None = None

    def __post_init__(self) -> None:
        if self.target <= self.window:
            raise ValueError(
                f"--target is {self.target}; it must be more than the model's window, {self.window}"
            )
        if not self.seconds > 0:
            raise ValueError(f"--seconds is {self.seconds}; it must be positive")
        if self.documents < 1:
            raise ValueError(f"--documents is {self.documents}; it must be at least 1")
        if self.trials < 1 or self.trials % len(self.depths):
            raise ValueError(
                f"--trials is {self.trials}; it must be a positive multiple of {len(self.depths)}, "
                "the number of depths that needles are hidden at"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """The window, twice as much and so on, and the target."""
        doublings = range((self.target - 1).bit_length())
        doubled = (self.window << n for n in doublings)
        return (*(length for length in doubled if length < self.target), self.target)

    @property
    def short(self) -> int:
        """Real tokens of a sample whose positions are spread over the target."""
        return round(TRAIN_SHARE * self.target)

    @property
    def needles(self) -> int:
        """At each length, seed and depth."""
        return self.trials // len(self.depths)

    def settings(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return asdict(self) | {"depths": list(self.depths)}


# See the arithmetic in `__main__`.
GPU = Scale(target=131_072, seconds=60, trials=10, documents=2)
CPU = Scale(target=16_384, seconds=600, trials=5, documents=2)
REHEARSAL = Scale(
    target=192,
    seconds=0.5,
    trials=2,
    documents=1,
    window=128,
    depths=(0, 100),
    answer_tokens=3,
    layers=2,
    files=2,
)
