"""How much is evaluated on, and which of the losses says what the best model is."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.train.arguments.argument import help_text

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

EVAL_SAMPLES = 64

_BY_LOSS = ("reduce_lr_on_plateau", "greedy")


@dataclass
class EvaluationArguments:
    """Of `eval_data`, beside what transformers has."""

    eval_samples: int = field(
        default=EVAL_SAMPLES,
        metadata=help_text(
            "evaluate on so many samples of eval_data, evenly spaced and always the same; 0 takes "
            "all"
        ),
    )


def resolve(arguments: "LrkTrainingArguments") -> None:
    """Whether the untouched model is evaluated, and the metric that chooses models or learning
    rates: the loss at the target length.

    transformers' own default, `eval_loss`, is of a single evaluation set; here each length has one.

    Raises:
        ValueError: for a metric that no evaluation gives, and an evaluation of nothing.
    """
    if arguments.eval_on_start and not arguments.eval_data:
        raise ValueError("eval_on_start is true, but eval_data is empty; name what to evaluate on")
    if arguments.eval_on_start is None:
        arguments.eval_on_start = bool(arguments.eval_data)
    compares = (
        arguments.load_best_model_at_end
        or arguments.save_strategy == "best"
        or arguments.lr_scheduler_type in _BY_LOSS
    )
    lengths = arguments.eval_lengths or []
    metric = arguments.metric_for_best_model
    if not (compares or metric is not None):
        return
    if arguments.eval_strategy == "no":
        raise ValueError(
            "eval_strategy is 'no', but load_best_model_at_end, save_strategy best, "
            "metric_for_best_model and schedules by loss compare evaluations: give one"
        )
    if not lengths:
        raise ValueError(
            "eval_lengths is empty, but load_best_model_at_end, save_strategy best and schedules "
            "by loss compare the loss at one of them"
        )
    known = [f"eval_{length}_loss" for length in lengths]
    if metric in (None, "loss", "eval_loss"):
        target = arguments.target_length
        metric = f"eval_{target if target in lengths else max(lengths)}_loss"
    if metric not in known and f"eval_{metric}" not in known:
        raise ValueError(
            f"metric_for_best_model is {metric!r}; it must be one of {', '.join(known)}, the "
            "losses at eval_lengths"
        )
    arguments.metric_for_best_model = metric


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """`wanted` of the integers below `count`, the first and the last among them; 0 wants all."""
    if not 0 < wanted < count:
        return list(range(count))
    return [number * (count - 1) // max(wanted - 1, 1) for number in range(wanted)]
