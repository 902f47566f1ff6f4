"""The tokens that a run trains on: samples, steps, passes over the data, positions."""

from collections.abc import Iterator, Sequence
from itertools import islice

from lrk.recipe import Sample, Samples, SampleStream
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.placement import PlacedSample
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.engine import engine_of
from lrk.train.steps import samples_a_step, steps_of

SURVEYED_SAMPLES = 64
# Repeating data so often costs next to nothing, and much more is next to useless (2305.16264).
_HARMLESS_PASSES = 4

AnySamples = Samples | MixedSamples | SampleStream


def surveyed_samples(samples: AnySamples) -> list[Sample]:
    """The first ones."""
    if isinstance(samples, SampleStream):
        return list(islice(samples, SURVEYED_SAMPLES))
    return [samples[index] for index in range(min(SURVEYED_SAMPLES, len(samples)))]


def passes_of(arguments: LrkTrainingArguments, samples: AnySamples) -> float | None:
    """How often a run trains each sample; of a stream that is not known."""
    if isinstance(samples, SampleStream):
        return None
    return steps_of(arguments, samples) * samples_a_step(arguments) / len(samples)


def passes_described(passes: float) -> str:
    """Such as `832 over the same samples: ...`, with a warning where they are many."""
    if passes <= _HARMLESS_PASSES:
        return f"{passes:,.2g} over the samples"
    return (
        f"{passes:,.0f} over the same samples: beyond some {_HARMLESS_PASSES} text that comes "
        "again teaches little (2305.16264); give more data, or fewer steps"
    )


def token_plan(
    arguments: LrkTrainingArguments,
    samples: AnySamples,
    surveyed: Sequence[PlacedSample],
    window: int,
) -> Iterator[str]:
    """Lines.

    Args:
        surveyed: the first samples, as they are placed.
        window: that positions are drawn over.
    """
    length = arguments.train_length
    batch, steps = samples_a_step(arguments), steps_of(arguments, samples)
    engine = engine_of(arguments)
    lasts = [int(sample["position_ids"][-1]) for sample in surveyed]
    skipping = [last for last in lasts if last >= length]
    yield "Token plan"
    if isinstance(samples, SampleStream):
        packed = sum(len(sample["segment_lengths"]) > 1 for sample in surveyed)
        yield f"  samples          of {length:,} tokens; a stream does not say how many"
        yield f"  packed           {packed:,} of the first {len(surveyed):,}"
        yield f"  shuffled         among {samples.shuffle_buffer:,} samples"
    else:
        left_over = samples.num_unused_tokens
        yield f"  samples          {len(samples):,} of {length:,} tokens"
        yield f"  packed           {samples.num_packed:,} hold more than one document"
        yield f"  tokens           {samples.num_tokens:,} used, {left_over:,} left over"
        if samples.selection is not None:
            yield (
                f"  selection        {samples.selection.rule}, which leaves out "
                f"{samples.num_unselected_tokens:,} more"
            )
        if isinstance(samples, Samples):
            yield from _selected(samples, len(surveyed))
    if isinstance(samples, MixedSamples):
        for name, part, count in zip(arguments.data, samples.sources, samples.counts, strict=True):
            yield (
                f"  {count / len(samples):<16.1%} {len(part):,} samples of {name}, each "
                f"{count / len(part):.1f} times"
            )
    yield f"  a step           {batch:,} samples, {batch * length:,} tokens"
    if engine.processes > 1:
        yield f"  engine           {engine}"
    yield f"  steps            {steps:,}, {steps * batch * length:,} tokens in all"
    passes = passes_of(arguments, samples)
    if passes is not None:
        yield f"  passes           {passes_described(passes)}"
    yield (
        f"  positions        {arguments.position_method}; of the first {len(surveyed):,} samples "
        f"{len(skipping):,} skip"
    )
    if skipping:
        yield (
            f"  last position    {sum(skipping) / len(skipping):,.0f} on average where they skip, "
            f"below {window:,}"
        )


def _selected(samples: Samples, count: int) -> Iterator[str]:
    """What the selection takes for the first samples, where it takes something."""
    chosen = [found for index in range(count) if (found := samples.choice(index)) is not None]
    if not chosen:
        return
    stretch = sum(size for size, _ in chosen)
    covered = sum(int(choice.tokens[-1] - choice.tokens[0]) + 1 for _, choice in chosen)
    qualifying = sum(choice.num_qualifying for _, choice in chosen)
    filled = sum(choice.num_filled for _, choice in chosen)
    yield (
        f"  chosen           {len(chosen) * samples.length / stretch:.1%} of {stretch:,} tokens, "
        f"of which {qualifying / stretch:.1%} qualify, for the first {len(chosen):,} samples"
    )
    yield (
        f"  covered          {covered / stretch:.1%} of them from first to last; "
        f"{filled / (len(chosen) * samples.length):.1%} of the samples fill up"
    )
