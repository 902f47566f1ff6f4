"""Which layers a distance beyond the window reaches: those that rotate by positions and see so far.

Positions that skip show a layer distances that its text does not have, by RoPE alone. A layer
without RoPE and one of linear attention compute the same at whatever positions tokens stand, so
they are trained for as many tokens as a sample has. A sliding window that is no longer than the
window of the model hides what is new, now and in long texts to come: there is nothing to train.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig

from lrk.hf.architectures import text_config
from lrk.layer_kinds import LayerKind, layer_kinds

# What keeps new distances from a layer, and what of the config says so.
NO_ATTENTION, NO_ROPE, SHORT_WINDOW = "of linear attention", "without RoPE", "with a sliding window"
SAID_BY = {
    NO_ATTENTION: "layer_types",
    NO_ROPE: "no_rope_layers",
    SHORT_WINDOW: "sliding_window",
}


@dataclass(frozen=True)
class ReachedLayers:
    """How many layers of a model distances from `window` on reach.

    Attributes:
        window: `L`, in tokens; the distances 0 to L - 1 are known.
        layers: all of them.
        missed: layers that are not reached, for each of `SAID_BY`.
        farthest: distances below it are seen by one at least; None sees all.
    """

    window: int
    layers: int
    missed: Mapping[str, int]
    farthest: int | None

    @property
    def reached(self) -> int:
        return self.layers - sum(self.missed.values())

    @property
    def blind(self) -> dict[str, int]:
        """Those missed that are changed by a longer text, and only by it."""
        return {why: count for why, count in self.missed.items() if why != SHORT_WINDOW}

    @property
    def reasons(self) -> str:
        """`9 without RoPE, 24 with a sliding window`."""
        return _counted(self.missed)

    def __str__(self) -> str:
        if not self.missed:
            return f"all {self.layers} layers are reached"
        return f"{self.reached} of {self.layers} layers are reached; {self.reasons}"

    def check(self, position_method: str) -> None:
        """Raise `ValueError` if no layer is reached, so that positions that skip train nothing."""
        if self.reached == 0:
            raise ValueError(
                f"position_method {position_method!r} would train nothing: {self.obstacle}; take "
                "'contiguous' and samples as long as the texts to come, or a model with layers "
                "that do"
            )

    @property
    def obstacle(self) -> str:
        """Of a model none of whose layers is reached: what keeps them, and where it is said."""
        names = " and ".join(f"config.{SAID_BY[why]}" for why in self.missed)
        return (
            "no layer of the model rotates by positions and sees beyond its window of "
            f"{self.window:,} ({names}: {self.reasons})"
        )

    @property
    def warning(self) -> str | None:
        """Of what a longer text changes and positions that skip cannot train."""
        if not self.blind:
            return None
        return (
            f"layers that do not see positions (of {self.layers}: {_counted(self.blind)}) are "
            "trained for no more tokens than a sample has: samples of real length beyond the "
            "window reach them, positions that skip do not"
        )


def reached_layers(config: PretrainedConfig, window: int) -> ReachedLayers:
    """Count the layers of a (text) model that distances of `window` tokens and more reach.

    Args:
        window: of the model before it is extended.
    """
    kinds = layer_kinds(text_config(config))
    missed = Counter(why for kind in kinds if (why := _obstacle(kind, window)) is not None)
    windows = [kind.window for kind in kinds if kind.rotates]
    farthest = None if None in windows else max((each for each in windows if each), default=0)
    return ReachedLayers(window, len(kinds), dict(missed), farthest)


def _obstacle(kind: LayerKind, window: int) -> str | None:
    if not kind.attends:
        return NO_ATTENTION
    if not kind.rotates:
        return NO_ROPE
    return SHORT_WINDOW if kind.window is not None and kind.window <= window else None


def _counted(missed: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in missed.items())
