"""How large the study is: the model, its windows, and how much it trains on."""

from dataclasses import asdict, dataclass
from typing import Any

from lrk.train.arguments import TRAIN_SHARE


@dataclass(frozen=True)
class Scale:
    """The numbers of a study. Lengths are in tokens.

    Attributes:
        window: of the pretrained model.
        target: that the window is extended to.
        longest: of the held-out documents, which are read from the start up to here.
        documents: held out, of at least `longest`.
        files: that are trained on; None takes all.
        vocabulary: tokens of the tokenizer.
        hidden, intermediate, layers, heads, key_value_heads: of the model.
        text_steps: of pretraining, each of `pretraining_samples` of the window.
        repeat_steps: after them, on text and on text that repeats.
        extension_tokens: of each method that trains, but for those that say they have fewer.
    """

    window: int = 512
    target: int = 4_096
    longest: int = 8_192
    documents: int = 24
    files: int | None = None
    vocabulary: int = 2_048
    hidden: int = 192
    intermediate: int = 512
    layers: int = 4
    heads: int = 6
    key_value_heads: int = 2
    text_steps: int = 1_800
    repeat_steps: int = 600
    pretraining_samples: int = 4
    extension_tokens: int = 245_760

    @property
    def short(self) -> int:
        """Of a sample whose positions are spread over the target."""
        return round(TRAIN_SHARE * self.target)

    @property
    def edges(self) -> tuple[int, ...]:
        """Of the buckets of positions and distances: 0, the window, and doublings up to the end."""
        edges = [0, self.window]
        while edges[-1] < self.longest:
            edges.append(2 * edges[-1])
        return tuple(edges)

    def settings(self) -> dict[str, Any]:
        return asdict(self)


FULL = Scale()
REHEARSAL = Scale(
    window=64,
    target=256,
    longest=1_024,
    documents=2,
    files=12,
    vocabulary=300,
    hidden=32,
    intermediate=64,
    layers=2,
    heads=2,
    key_value_heads=1,
    text_steps=2,
    repeat_steps=2,
    extension_tokens=512,
)
