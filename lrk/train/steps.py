"""How many samples a step takes, and how many steps a run has."""

import math

from lrk.recipe import Samples, SampleStream
from lrk.recipe.mixture import MixedSamples
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.engine import engine_of


def samples_a_step(arguments: LrkTrainingArguments) -> int:
    """Of all processes that share none, and of accumulated batches."""
    return (
        arguments.per_device_train_batch_size
        * arguments.gradient_accumulation_steps
        * engine_of(arguments).data_parallel
    )


def steps_of(
    arguments: LrkTrainingArguments, samples: Samples | MixedSamples | SampleStream
) -> int:
    """As transformers counts them; a stream has `max_steps`."""
    if arguments.max_steps > 0 or isinstance(samples, SampleStream):
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * steps_of_epoch(arguments, len(samples)))


def steps_of_epoch(arguments: LrkTrainingArguments, samples: int) -> int:
    """Of which the last may have fewer samples."""
    return math.ceil(samples / samples_a_step(arguments))
