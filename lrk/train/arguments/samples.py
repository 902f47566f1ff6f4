"""What a sample holds: how many tokens, and how they are chosen from a document."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.recipe.selection import SELECTIONS, check_table
from lrk.train.arguments.argument import help_text
from lrk.train.nearest import require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

TRAIN_SHARE = 0.3
LONGEST = 2**31
"""The kernels' phases are exact below."""


@dataclass
class SampleArguments:
    """The window, the real tokens of a sample, and their selection."""

    target_length: int = field(default=131_072, metadata=help_text("window to reach, in tokens"))
    train_length: int = field(  # type: ignore[assignment]
        default=None,
        metadata=help_text(f"real tokens of a sample (default: {TRAIN_SHARE} x target)"),
    )
    selection: str | None = field(
        default=None,
        metadata=help_text(
            "how a sample's text is chosen from target_length tokens of a document: one of "
            f"{', '.join(SELECTIONS)} (default: it is train_length tokens in a row)"
        ),
    )
    impactful_tokens: str | None = field(
        default=None,
        metadata=help_text("table of lrk-data analyze, for selection or token_loss impactful"),
    )


def resolve(arguments: "LrkTrainingArguments") -> None:
    """The share of the target that LongRecipe takes."""
    if arguments.train_length is None:
        arguments.train_length = round(TRAIN_SHARE * arguments.target_length)


def check_lengths(arguments: "LrkTrainingArguments") -> None:
    """Refuse samples without a token to predict, and samples longer than the window."""
    if arguments.train_length < 2:
        raise ValueError(f"train_length is {arguments.train_length}; it must be at least 2")
    if arguments.target_length > LONGEST:
        raise ValueError(
            f"target_length is {arguments.target_length}; it must be at most {LONGEST}"
        )
    if arguments.target_length < arguments.train_length:
        raise ValueError(
            f"target_length is {arguments.target_length}, shorter than train_length "
            f"{arguments.train_length}; it must be at least as long"
        )


def check_selection(arguments: "LrkTrainingArguments") -> None:
    """Refuse an unknown selection, and one without its table."""
    if arguments.selection is not None:
        require_one_of("selection", arguments.selection, SELECTIONS)
    check_table(arguments.selection, arguments.selection_table)
