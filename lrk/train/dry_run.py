"""What a run would do: its arguments, its tokens, one sample with its positions, its memory."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from lrk.recipe import Placement, Sample, Samples, SampleStream
from lrk.train import run_folder
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.lora import add_lora
from lrk.train.pretrained import load_config, load_tokenizer
from lrk.train.session import load_samples
from lrk.train.trainer import training_placement

ADAMW = ("adamw_torch", "adamw_torch_fused")
SHOWN_SEGMENTS = 12
SHOWN_CHARACTERS = 60
SURVEYED_SAMPLES = 64


def dry_run(arguments: LrkTrainingArguments) -> str:
    """Check all that can be checked without the weights, and describe the run.

    Raises:
        ValueError: as `set_up`.
    """
    run_folder.check(arguments)
    config = load_config(arguments)
    tokenizer = load_tokenizer(arguments, config)
    samples, _ = load_samples(arguments, tokenizer)
    placement = training_placement(arguments)
    surveyed = _surveyed(samples)
    return "\n".join(
        [
            arguments.to_yaml(),
            *_token_plan(arguments, samples, surveyed, placement),
            "",
            *_one_sample(surveyed, placement, tokenizer),
            "",
            *_memory(arguments, config),
        ]
    )


def _surveyed(samples: Samples | SampleStream) -> list[Sample]:
    if isinstance(samples, SampleStream):
        return list(islice(samples, SURVEYED_SAMPLES))
    return [samples[index] for index in range(min(SURVEYED_SAMPLES, len(samples)))]


def _token_plan(
    arguments: LrkTrainingArguments,
    samples: Samples | SampleStream,
    surveyed: Sequence[Sample],
    placement: Placement,
) -> Iterator[str]:
    batch = (
        arguments.per_device_train_batch_size
        * arguments.gradient_accumulation_steps
        * arguments.world_size
    )
    lasts = [int(placement.position_ids(sample)[-1]) for sample in surveyed]
    skipping = [last for last in lasts if last >= samples.length]
    yield "Token plan"
    if isinstance(samples, SampleStream):
        steps = arguments.max_steps
        packed = sum(len(sample["segment_lengths"]) > 1 for sample in surveyed)
        yield f"  samples          of {samples.length:,} tokens; a stream does not say how many"
        yield f"  packed           {packed:,} of the first {len(surveyed):,}"
        yield f"  shuffled         among {samples.shuffle_buffer:,} samples"
    else:
        steps = _steps(arguments, len(samples), batch)
        left_over = samples.num_unused_tokens
        yield f"  samples          {len(samples):,} of {samples.length:,} tokens"
        yield f"  packed           {samples.num_packed:,} hold more than one document"
        yield f"  tokens           {samples.num_tokens:,} used, {left_over:,} left over"
    yield f"  a step           {batch:,} samples, {batch * samples.length:,} tokens"
    yield f"  steps            {steps:,}, {steps * batch * samples.length:,} tokens in all"
    yield (
        f"  positions        {arguments.position_method}; of the first {len(surveyed):,} samples "
        f"{len(skipping):,} skip"
    )
    if skipping:
        yield (
            f"  last position    {sum(skipping) / len(skipping):,.0f} on average where they skip, "
            f"below {placement.target_length:,}"
        )


def _steps(arguments: LrkTrainingArguments, samples: int, batch: int) -> int:
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * math.ceil(samples / batch))


def _one_sample(
    surveyed: Sequence[Sample], placement: Placement, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """The first sample that skips, segment by segment; the first one if none does."""
    laid_out = ((sample, placement.position_ids(sample)) for sample in surveyed)
    sample, positions = next(
        (pair for pair in laid_out if int(pair[1][-1]) >= len(pair[1])),
        (surveyed[0], placement.position_ids(surveyed[0])),
    )
    yield f"Sample {sample['index']}, epoch 0: positions and text of each segment"
    start = 0
    segments = torch.cat(sample["segment_lengths"]).tolist()
    for length in segments[:SHOWN_SEGMENTS]:
        text = repr(tokenizer.decode(sample["input_ids"][start : start + length]))[1:-1]
        if len(text) > SHOWN_CHARACTERS:
            text = text[: SHOWN_CHARACTERS - 3] + "..."
        first, last = int(positions[start]), int(positions[start + length - 1])
        yield f"  {first:>9,} .. {last:>9,}  {text}"
        start += length
    if len(segments) > SHOWN_SEGMENTS:
        yield f"  and {len(segments) - SHOWN_SEGMENTS:,} more, up to {int(positions[-1]):,}"


def _memory(arguments: LrkTrainingArguments, config: PretrainedConfig) -> Iterator[str]:
    """What is certain before a step is taken: bytes per parameter. Activations are not guessed."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=_dtype(arguments, config))
        trained = add_lora(model, arguments) if arguments.lora_rank else model
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in trained.parameters()]
    weights = sum(size for size, _ in sizes)
    gradients = sum(size for size, is_trained in sizes if is_trained)
    yield "Memory that does not depend on the length of a sample"
    yield f"  weights          {weights / 2**30:8.2f} GiB"
    yield f"  gradients        {gradients / 2**30:8.2f} GiB"
    optimizer = arguments.to_dict()["optim"]
    if optimizer in ADAMW:
        yield f"  AdamW moments    {2 * gradients / 2**30:8.2f} GiB"
    else:
        yield f"  optimizer state  not predicted for {optimizer}"
    yield "  activations and the loss come on top and are not predicted"


def _dtype(arguments: LrkTrainingArguments, config: PretrainedConfig) -> torch.dtype:
    if arguments.dtype != "auto":
        return getattr(torch, arguments.dtype)
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
