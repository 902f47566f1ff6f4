"""Where the tokens of a sample stand, in training and in evaluation."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.positions import SAMPLERS
from lrk.recipe.selection import BETWEEN_SENTENCES, POSITIONS
from lrk.train.arguments.argument import help_text
from lrk.train.arguments.samples import LONGEST
from lrk.train.nearest import require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments


@dataclass
class PositionArguments:
    """Positions, how far they reach, and the RoPE that turns by them."""

    position_method: str = field(
        default="longrecipe", metadata=help_text(f"one of {', '.join(SAMPLERS)}")
    )
    end_prompt: str | None = field(
        default=None,
        metadata=help_text("text that ends every sample, for position_method endprompt"),
    )
    pin_end: bool = field(
        default=False,
        metadata=help_text("let longrecipe end every sample at the last position of the target"),
    )
    position_reach: float = field(
        default=1.0, metadata=help_text("positions are drawn over so many target_lengths")
    )
    attention_temperature: float = field(
        default=1.0, metadata=help_text("softmax temperature of attention in training")
    )
    contiguous_share: float = field(
        default=0.3, metadata=help_text("share of samples that keep ordinary positions")
    )
    rope_theta: float | None = field(
        default=None, metadata=help_text("RoPE base (default: scaled_rope_theta)")
    )
    eval_lengths: list[int] | None = field(
        default=None,
        metadata=help_text(
            "simulated lengths to evaluate at (default: train_length and target_length)"
        ),
    )
    eval_position_method: str = field(
        default="longrecipe", metadata=help_text("as position_method, in evaluation")
    )


def resolve(arguments: "LrkTrainingArguments") -> None:
    """The lengths that can be evaluated: stock attention reads no skipped positions."""
    if arguments.eval_lengths is None:
        lengths = [arguments.train_length]
        if arguments.kernels["attention"] and arguments.target_length != arguments.train_length:
            lengths.append(arguments.target_length)
        arguments.eval_lengths = lengths


def check_methods(arguments: "LrkTrainingArguments") -> None:
    """Refuse unknown samplers."""
    require_one_of("position_method", arguments.position_method, SAMPLERS)
    require_one_of("eval_position_method", arguments.eval_position_method, SAMPLERS)


def check_spread(arguments: "LrkTrainingArguments") -> None:
    """Refuse a reach, a temperature and a share out of their ranges."""
    if not 1 <= arguments.position_reach < math.inf:
        raise ValueError(f"position_reach is {arguments.position_reach}; it must be at least 1")
    if arguments.position_reach * arguments.target_length > LONGEST:
        raise ValueError(
            f"position_reach is {arguments.position_reach} with target_length "
            f"{arguments.target_length}; their product must be at most {LONGEST}"
        )
    if not 0 < arguments.attention_temperature < math.inf:
        raise ValueError(
            f"attention_temperature is {arguments.attention_temperature}; it must be positive"
        )
    if not 0 <= arguments.contiguous_share <= 1:
        raise ValueError(
            f"contiguous_share is {arguments.contiguous_share}; it must be between 0 and 1"
        )


def check_window(arguments: "LrkTrainingArguments") -> None:
    """Refuse a RoPE base that is not positive, and evaluation below the length of a sample."""
    if arguments.rope_theta is not None and arguments.rope_theta <= 0:
        raise ValueError(f"rope_theta is {arguments.rope_theta}; it must be positive")
    if max(arguments.eval_lengths or [], default=0) > LONGEST:
        raise ValueError(
            f"eval_lengths is {arguments.eval_lengths}; each must be at most {LONGEST}"
        )
    if min(arguments.eval_lengths or [], default=arguments.train_length) < arguments.train_length:
        raise ValueError(
            f"eval_lengths is {arguments.eval_lengths}; each must be at least train_length "
            f"{arguments.train_length}"
        )


def check_contiguous(arguments: "LrkTrainingArguments") -> None:
    """Refuse what is for positions that are spread, where none are."""
    for name in ("position_reach", "attention_temperature"):
        if arguments.position_method == "contiguous" and getattr(arguments, name) != 1:
            raise ValueError(
                f"{name} is {getattr(arguments, name)} with position_method 'contiguous'; it is "
                "for positions that are spread, so leave it at 1"
            )
    for name in ("position_reach", "pin_end"):
        if arguments.contiguous_share == 1 and arguments.is_given(name):
            raise ValueError(
                f"{name} is {str(getattr(arguments, name)).lower()} with contiguous_share "
                f"{arguments.contiguous_share}; it is for positions that are spread, and none are"
            )


def check_of_method(arguments: "LrkTrainingArguments") -> None:
    """Refuse what does not go with `position_method`."""
    method = arguments.position_method
    if arguments.end_prompt is not None and method != "endprompt":
        raise ValueError(
            f"end_prompt is given with position_method {method!r}; it belongs to 'endprompt'"
        )
    if arguments.pin_end and method != "longrecipe":
        raise ValueError(
            f"pin_end is true with position_method {method!r}; it belongs to 'longrecipe'"
        )
    if arguments.selection == POSITIONS and method in BETWEEN_SENTENCES:
        raise ValueError(
            "selection 'positions' takes the text from where the positions are, but "
            f"position_method {method!r} puts its gaps between the sentences of a text that is "
            "there already; choose another of the two"
        )
