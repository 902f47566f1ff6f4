"""Hours and price of a run by the planner's estimate of a step: predicted, never measured."""

import math
from collections.abc import Iterator

from lrk.plan.gpus import EFFICIENCY
from lrk.recipe import SampleStream
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.arguments.evaluation import evenly_spaced
from lrk.train.engine import engine_of
from lrk.train.planned_step import CPU, PlannedStep
from lrk.train.steps import steps_of, steps_of_epoch
from lrk.train.token_plan import AnySamples

HOUR, DAY = 3600.0, 86400.0


def evaluations_of(arguments: LrkTrainingArguments, samples: AnySamples) -> int:
    """How often a run with `eval_data` evaluates: as often as it is told, and at its end."""
    strategy, steps = str(arguments.to_dict()["eval_strategy"]), steps_of(arguments, samples)
    every = arguments.eval_steps or 0.0
    if strategy == "epoch":
        if isinstance(samples, SampleStream):  # whose one epoch ends with the run
            return 1
        every = steps_of_epoch(arguments, len(samples))
    if strategy == "no" or not every:
        return 1
    return math.ceil(steps / (every if every >= 1 else math.ceil(every * steps)))


def evaluation_line(arguments: LrkTrainingArguments, samples: AnySamples, evaluated: int) -> str:
    """Such as `3 of 70 samples, at 16, 256`, and how often.

    Args:
        samples: to train on.
        evaluated: samples of `eval_data` that there are.
    """
    chosen = len(evenly_spaced(evaluated, arguments.eval_samples))
    lengths = ", ".join(f"{length:,}" for length in arguments.eval_lengths or [])
    times = evaluations_of(arguments, samples)
    before = " and of the untouched model" if arguments.eval_on_start else ""
    return f"{chosen:,} of {evaluated:,} samples, at {lengths}; {_times(times)} in the run{before}"


def cost_lines(
    arguments: LrkTrainingArguments,
    step: PlannedStep,
    samples: AnySamples,
    evaluated: int,
) -> Iterator[str]:
    """Hours of training and evaluation, and their price.

    Args:
        evaluated: samples of `eval_data` that there are.
    """
    if step.plan is None or step.device.kernels == CPU:
        yield "Time and price: predicted for GPUs alone (--gpu NAME)"
        return
    engine, steps = engine_of(arguments), steps_of(arguments, samples)
    of_batch = step.plan.estimate()["seconds"]
    of_step = of_batch * arguments.gradient_accumulation_steps
    training = of_step * steps
    evaluating = _evaluation_seconds(arguments, of_batch, samples, evaluated)
    name = step.device.kernels
    on = f"{engine.processes} {name}" if engine.processes > 1 else f"one {name}"
    yield f"Time and price on {on} at {EFFICIENCY:.0%} of its published peak: predicted"
    yield f"  a step           {_duration(of_step)}"
    yield f"  training         {_duration(training)} for {steps:,} steps"
    if evaluated:
        yield f"  evaluation       {_duration(evaluating)}, roughly"
    hours = (training + evaluating) / HOUR * engine.processes
    if arguments.dollars_per_hour is None:
        yield f"  price            {_amount(hours, 2)} GPU hours (--dollars_per_hour N prices them)"
    else:
        dollars = hours * arguments.dollars_per_hour
        yield (
            f"  price            {_amount(dollars, 2)} dollars: {_amount(hours, 2)} GPU hours at "
            f"{arguments.dollars_per_hour:,.2f}"
        )


def _evaluation_seconds(
    arguments: LrkTrainingArguments, of_batch: float, samples: AnySamples, evaluated: int
) -> float:
    """Of all evaluations. A forward pass is a fourth of a step that computes layers again, a third
    of one that does not."""
    if not evaluated:
        return 0.0
    forward = of_batch / arguments.per_device_train_batch_size
    forward /= 4 if arguments.gradient_checkpointing else 3
    chosen = len(evenly_spaced(evaluated, arguments.eval_samples))
    passes = chosen * len(arguments.eval_lengths or [])
    times = evaluations_of(arguments, samples) + bool(arguments.eval_on_start)
    return forward * math.ceil(passes / engine_of(arguments).data_parallel) * times


def _duration(seconds: float) -> str:
    if seconds < 2 * HOUR:
        return f"{_amount(seconds, 1)} s" if seconds < 120 else f"{seconds / 60:,.1f} minutes"
    return f"{seconds / HOUR:,.1f} hours" if seconds < 2 * DAY else f"{seconds / DAY:,.1f} days"


def _amount(value: float, decimals: int) -> str:
    """So that little is not nothing."""
    least = 10**-decimals
    return f"less than {least:g}" if value < least else f"{value:,.{decimals}f}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
