"""How tokens are weighed in training."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.hf.sdpa import IMPLEMENTATION as SDPA
from lrk.train.arguments.argument import help_text
from lrk.train.nearest import require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

PLAIN, LONGCE, IMPACTFUL = TOKEN_LOSSES = ("plain", "longce", "impactful")
_OF_TOKEN_LOSS = {
    "impactful_weight": IMPACTFUL,
    "longce_short_context": LONGCE,
    "longce_short_stride": LONGCE,
    "longce_max_weight": LONGCE,
}


@dataclass
class LossArguments:
    """The loss of a token, and what belongs to one kind of it."""

    token_loss: str = field(
        default=PLAIN,
        metadata=help_text(f"how tokens are weighed in training: one of {', '.join(TOKEN_LOSSES)}"),
    )
    impactful_weight: float = field(
        default=2.0, metadata=help_text("token_loss impactful: weight of its types beside others")
    )
    longce_short_context: int = field(
        default=4096, metadata=help_text("token_loss longce: short context, in positions")
    )
    longce_short_stride: int = field(
        default=1024,
        metadata=help_text("token_loss longce: positions between short contexts; more is faster"),
    )
    longce_max_weight: float = field(
        default=5.0, metadata=help_text("token_loss longce: largest weight of a token")
    )


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse what belongs to another loss, and what this one cannot be computed with."""
    require_one_of("token_loss", arguments.token_loss, TOKEN_LOSSES)
    for name in ("longce_short_context", "longce_short_stride"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} is {getattr(arguments, name)}; it must be at least 1")
    for name in ("impactful_weight", "longce_max_weight"):
        if not 0 < getattr(arguments, name) < math.inf:
            raise ValueError(f"{name} is {getattr(arguments, name)}; it must be positive")
    for name, token_loss in _OF_TOKEN_LOSS.items():
        if arguments.is_given(name) and arguments.token_loss != token_loss:
            raise ValueError(
                f"{name} is {getattr(arguments, name)} with token_loss {arguments.token_loss!r}; "
                f"it belongs to {token_loss!r}"
            )
    if arguments.token_loss != PLAIN and not arguments.kernels["cross_entropy"]:
        raise ValueError(
            f"token_loss is {arguments.token_loss!r} with kernels.cross_entropy false; the loss of "
            "transformers takes no weights, so keep kernels.cross_entropy"
        )
    if arguments.token_loss == IMPACTFUL and arguments.impactful_tokens is None:
        raise ValueError(
            "token_loss is 'impactful' without impactful_tokens; it must name a table of "
            "lrk-data analyze"
        )
    if arguments.token_loss == LONGCE:
        _check_longce(arguments)


def _check_longce(arguments: "LrkTrainingArguments") -> None:
    if not arguments.kernels["attention"]:
        raise ValueError(
            "token_loss is 'longce' with kernels.attention false; short contexts are packed as "
            "documents, which needs it"
        )
    if arguments.kernels["attention"] == SDPA:
        raise ValueError(
            "token_loss is 'longce' with kernels.attention 'sdpa', which knows no documents, as "
            "which short contexts are packed: leave kernels.attention true"
        )
    short = arguments.longce_short_context + arguments.longce_short_stride
    if short >= arguments.target_length:
        raise ValueError(
            "token_loss is 'longce' with longce_short_context "
            f"{arguments.longce_short_context} and longce_short_stride "
            f"{arguments.longce_short_stride}; their sum must be less than target_length "
            f"{arguments.target_length}, or no token has more than a short context"
        )
