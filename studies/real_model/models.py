"""The models that are compared, as data."""

import math
from dataclasses import dataclass

from studies.real_model.scale import Scale

REACH = 2
"""Over how many targets positions are drawn, where a model has reach: see docs/proof.md."""


@dataclass(frozen=True)
class Model:
    """One way to read beyond the window.

    Attributes:
        name: as the tables say it.
        sample: what it trains on: "window", "short" (spread over the target) or "full" (the
            target); None trains nothing.
        positions: sampler of `lrk-train`.
        widened: whether positions reach over more than the target, and attention has a temperature.
        share: of the training time.
        rescaled: whether the RoPE base is that of the target.
        doublings: lengths that it is read at, counted from the window; None reads all. What is lost
            at twice the window is not read at sixteen times.
    """

    name: str
    sample: str | None = None
    positions: str = "contiguous"
    widened: bool = False
    share: float = 1.0
    rescaled: bool = True
    doublings: int | None = None

    def lengths(self, scale: Scale) -> tuple[int, ...]:
        """Tokens that it is read at."""
        return scale.lengths[: None if self.doublings is None else self.doublings + 1]

    def sample_tokens(self, scale: Scale) -> int:
        """Real tokens of a training sample."""
        assert self.sample is not None
        return {"window": scale.window, "short": scale.short, "full": scale.target}[self.sample]

    def samples_a_step(self, scale: Scale) -> int:
        """Of the window as many as make about the tokens of a short sample; else one."""
        return max(1, scale.short // scale.window) if self.sample == "window" else 1

    def training(self, scale: Scale) -> list[str]:
        """What `lrk-train` is told of this model alone."""
        length = self.sample_tokens(scale)
        words = [
            *("--train_length", str(length)),
            *("--per_device_train_batch_size", str(self.samples_a_step(scale))),
            *("--position_method", self.positions),
        ]
        if self.widened:
            temperature = math.log(REACH * scale.target) / math.log(length)
            words += ["--position_reach", str(REACH), "--attention_temperature", f"{temperature}"]
        if self.sample == "full":
            # Without, 131,072 tokens take 113 GiB by lrk-plan; so 20, and attention is kept.
            words += ["--gradient_checkpointing", "true", "--keep_attention", "true"]
        return words


UNTOUCHED = Model("untouched", rescaled=False, doublings=1)
FULL = Model("full length", "full")
LONGRECIPE = Model("LongRecipe", "short", "longrecipe")
# In the order of the work: what an interrupted study lacks stands last.
MODELS = (
    UNTOUCHED,
    Model("base rescaled only"),
    FULL,
    Model("PoSE, reach and temperature, a third of the time", "short", "pose", True, 1 / 3),
    LONGRECIPE,
    Model("PoSE, reach and temperature", "short", "pose", True),
    Model("PoSE", "short", "pose"),
    Model("trained at the window", "window"),
)


@dataclass(frozen=True)
class Decoded:
    """A method of `lrk.decode` on one of the models, which trains nothing.

    Attributes:
        model: that it is applied to.
        decoding: as `lrk-eval` takes it.
        losses: whether it predicts a text; contrastive decoding changes logits only, and not to
            predict it better.
    """

    name: str
    model: Model
    decoding: str
    losses: bool = True


def decoded(scale: Scale) -> list[Decoded]:
    """The methods at the target. STRING's distances can be no less than half of the text, so beyond
    twice the window it is left out.

    SelfExtend's groups are the smallest power of two that reaches the target (4 reach 29,696 of
    8,192), DCA's distances end at the window, STRING's 65 beyond it.
    """
    window, target = scale.window, scale.target
    near = window // 8
    group = 4
    while (window - near) * group + near < target:
        group *= 2
    found = [
        Decoded("untouched, SelfExtend", UNTOUCHED, f"self_extend(window={near}, group={group})"),
        Decoded("untouched, DCA", UNTOUCHED, f"dca(chunk={3 * window // 4}, length={window})"),
        Decoded("LongRecipe, PCD", LONGRECIPE, "pcd", losses=False),
    ]
    if target <= 2 * window:
        shift = window + window // 128
        string = f"string(shift={shift}, window={window // 64})"
        found.insert(1, Decoded("untouched, STRING", UNTOUCHED, string))
    return found
