"""Where the tokens of a sample stand, in training and in evaluation."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lrk.positions import SAMPLERS
from lrk.recipe.selection import BETWEEN_SENTENCES, POSITIONS
from lrk.rope_factors import read_rope_factors
from lrk.rope_scaling import ROPE_SCALINGS, RopePlan
from lrk.train.arguments.argument import help_text
from lrk.train.arguments.samples import LONGEST
from lrk.train.nearest import require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

_OF_PLANS = {"rope_theta": "theta", "rope_factors": "longrope", "rope_critical_dimension": "ntk"}


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
    rope_scaling: str = field(
        default="theta",
        metadata=help_text(
            f"how RoPE is stretched to target_length, one of {', '.join(ROPE_SCALINGS)}"
        ),
    )
    rope_theta: float | None = field(
        default=None,
        metadata=help_text("RoPE base, for rope_scaling theta (default: scaled_rope_theta)"),
    )
    rope_factors: str | None = field(
        default=None,
        metadata=help_text("JSON file with a long_factor, for rope_scaling longrope"),
    )
    rope_critical_dimension: int | None = field(
        default=None,
        metadata=help_text(
            "critical pair of rotated dimensions, for rope_scaling ntk (default: the fastest that "
            "does not turn once in the model's window)"
        ),
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


def rope_plan(arguments: "LrkTrainingArguments") -> RopePlan:
    """How the run stretches RoPE.

    Raises:
        ValueError: for factors that cannot be read.
    """
    file = arguments.rope_factors
    return RopePlan(
        arguments.rope_scaling,
        arguments.rope_theta,
        None if file is None else read_rope_factors(Path(file).expanduser()),
        arguments.rope_critical_dimension,
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


def check_rope(arguments: "LrkTrainingArguments") -> None:
    """Refuse an unknown plan, and what does not go with it."""
    name = arguments.rope_scaling
    require_one_of("rope_scaling", name, ROPE_SCALINGS)
    for argument, plan in _OF_PLANS.items():
        value = getattr(arguments, argument)
        if value is not None and name != plan:
            raise ValueError(
                f"{argument} is {value!r} with rope_scaling {name!r}; it belongs to {plan!r}"
            )
    if name == "longrope" and arguments.rope_factors is None:
        raise ValueError("rope_factors is missing; rope_scaling 'longrope' needs a file of them")
    if arguments.rope_theta is not None and arguments.rope_theta <= 0:
        raise ValueError(f"rope_theta is {arguments.rope_theta}; it must be positive")
    critical = arguments.rope_critical_dimension
    if critical is not None and critical < 1:
        raise ValueError(f"rope_critical_dimension is {critical}; it must be at least 1")
    rope_plan(arguments)


def check_window(arguments: "LrkTrainingArguments") -> None:
    """Refuse evaluation below the length of a sample."""
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
