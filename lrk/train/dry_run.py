"""What a run would do: its arguments, its tokens, one sample with its positions, its memory."""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lrk.hf.backends import LRK
from lrk.hf.distillation import NONE
from lrk.plan import Settings, plan
from lrk.plan.command import description
from lrk.plan.settings import IMPLEMENTATIONS, OPTIMIZERS
from lrk.recipe import Sample, Samples, SampleStream
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.placement import PlacedSample
from lrk.rope_scaling import rope_description
from lrk.train import run_folder
from lrk.train.arguments import ATTENTION, LONGCE, LrkTrainingArguments
from lrk.train.arguments.evaluation import evenly_spaced
from lrk.train.arguments.positions import rope_plan
from lrk.train.disk_space import check_disk_space
from lrk.train.distillation import short_length, teacher_description
from lrk.train.engine import engine_of
from lrk.train.extension import extend_config
from lrk.train.longce import short_contexts
from lrk.train.lora import check_adapters
from lrk.train.new_distances import check_new_distances
from lrk.train.preflight import check_late_parts
from lrk.train.pretrained import check_attention_fits, load_config, load_tokenizer, stored_dtype
from lrk.train.session import load_samples
from lrk.train.steps import samples_a_step, steps_of
from lrk.train.trainer import training_placement

# A plan without optimizer state.
STATELESS = "sgd"
SHOWN_SEGMENTS = 12
SHOWN_CHARACTERS = 60
SURVEYED_SAMPLES = 64


def dry_run(
    arguments: LrkTrainingArguments,
    read_from: LrkTrainingArguments | None = None,
    start: PretrainedConfig | None = None,
) -> str:
    """Check all that can be checked without the weights, and describe the run.

    Args:
        read_from: arguments with the model whose tokenizer is read, where that of the run is yet to
            be made by another.
        start: what the config of that model will be then.

    Returns:
        The description; nothing in processes beside the main one, which check alike.

    Raises:
        ValueError: as `set_up`.
    """
    run_folder.check(arguments)
    original = load_config(read_from or arguments)
    config = original if start is None else start
    check_attention_fits(arguments, config)
    check_adapters(config, arguments)
    check_late_parts(arguments, config)
    tokenizer = load_tokenizer(read_from or arguments, config)
    samples, evaluation = load_samples(arguments, tokenizer)
    disk = check_disk_space(arguments, config, steps_of(arguments, samples))
    placement = training_placement(arguments, tokenizer)
    target, window = arguments.target_length, config.max_position_embeddings
    short_length(arguments, window)
    found = check_new_distances(samples, placement, target, window, config)
    if arguments.process_index > 0:
        return ""
    surveyed = [placement.placed(sample) for sample in _surveyed(samples)]
    return "\n".join(
        [
            arguments.to_yaml(),
            *_token_plan(arguments, samples, surveyed, placement.target_length),
            *_evaluated(arguments, evaluation),
            f"  new distances    {found or 'none to train: the model has this window already'}",
            f"  RoPE             {_rope(arguments, config, original)}",
            f"  disk             {disk}",
            *_teacher(arguments, window),
            "",
            *_one_sample(surveyed, tokenizer),
            "",
            *_memory(arguments, config),
            *_short_contexts(arguments, surveyed),
        ]
    )


def _rope(
    arguments: LrkTrainingArguments, config: PretrainedConfig, original: PretrainedConfig
) -> str:
    """What the run makes of a model's RoPE, of which the original is stretched."""
    before = rope_description(config)
    config = copy.deepcopy(config)
    extend_config(config, arguments.target_length, rope_plan(arguments), original)
    after = rope_description(config)
    if after == before:
        return f"{after}: the model's own"
    return f"{after}, by {arguments.rope_scaling}; before {before}"


def _surveyed(samples: Samples | MixedSamples | SampleStream) -> list[Sample]:
    if isinstance(samples, SampleStream):
        return list(islice(samples, SURVEYED_SAMPLES))
    return [samples[index] for index in range(min(SURVEYED_SAMPLES, len(samples)))]


def _token_plan(
    arguments: LrkTrainingArguments,
    samples: Samples | MixedSamples | SampleStream,
    surveyed: Sequence[PlacedSample],
    window: int,
) -> Iterator[str]:
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
    yield (
        f"  positions        {arguments.position_method}; of the first {len(surveyed):,} samples "
        f"{len(skipping):,} skip"
    )
    if skipping:
        yield (
            f"  last position    {sum(skipping) / len(skipping):,.0f} on average where they skip, "
            f"below {window:,}"
        )


def _teacher(arguments: LrkTrainingArguments, window: int) -> Iterator[str]:
    if arguments.distill != NONE:
        yield f"  teacher          {teacher_description(arguments, window)}"


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


def _evaluated(arguments: LrkTrainingArguments, evaluation: Samples | None) -> Iterator[str]:
    if evaluation is not None:
        chosen = evenly_spaced(len(evaluation), arguments.eval_samples)
        lengths = ", ".join(f"{length:,}" for length in arguments.eval_lengths or [])
        yield f"  evaluation       {len(chosen):,} of {len(evaluation):,} samples, at {lengths}"


def _one_sample(
    surveyed: Sequence[PlacedSample], tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """The first sample that skips, segment by segment; the first one if none does."""
    skips = (s for s in surveyed if int(s["position_ids"][-1]) >= len(s["position_ids"]))
    sample = next(skips, surveyed[0])
    positions = sample["position_ids"]
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
    """What a step allocates, traced on fake tensors."""
    implementation = kernels_implementation(arguments.kernels)
    yield "Memory of a step"
    if implementation is None:
        yield f"  not predicted for kernels {arguments.kernels}"
        return
    optim = str(arguments.to_dict()["optim"])
    settings = plan_settings(arguments, config, implementation, optim)
    try:
        planned = plan(str(arguments.model_name_or_path), config, settings)
    except ValueError as error:  # No reason against the run itself.
        yield f"  not predicted: {error}"
        return
    yield description(planned)
    if optim not in OPTIMIZERS:
        yield f"Optimizer state is not predicted for {optim}: it comes on top"
    if any(map(arguments.is_given, ("lora_targets", "lora_dropout"))):
        yield "Planned for adapters on all linear layers and without their dropout"


def _short_contexts(
    arguments: LrkTrainingArguments, surveyed: Sequence[PlacedSample]
) -> Iterator[str]:
    """What LongCE computes beside the step: forward passes, which save nothing."""
    if arguments.token_loss != LONGCE:
        return
    read = total = 0
    for sample in surveyed:
        lengths = [0, *(int(segments.sum()) for segments in sample["segment_lengths"])]
        contexts = short_contexts(
            sample["position_ids"],
            torch.tensor(lengths).cumsum(0),
            arguments.longce_short_context,
            arguments.longce_short_stride,
        )
        read += sum(context.stop - context.start for context in contexts)
        total += len(sample["position_ids"])
    yield (
        f"Not in the FLOPs and times: token_loss {LONGCE} first runs the model forward on short "
        f"contexts,\n{read / total:.2f} times the tokens of a sample (of the first "
        f"{len(surveyed):,}); its memory is below that of the step"
    )


def plan_settings(
    arguments: LrkTrainingArguments,
    config: PretrainedConfig,
    implementation: str,
    optim: str,
    gpu: str | None = None,
) -> Settings:
    """The step of a run, on a GPU of that name, or on this kind of device."""
    attention = arguments.kernels[ATTENTION]
    engine = engine_of(arguments)
    accumulates = arguments.gradient_accumulation_steps > 1
    return Settings(
        length=arguments.train_length,
        batch=arguments.per_device_train_batch_size,
        implementation=implementation,
        attention=attention if isinstance(attention, str) else LRK,
        dtype=str(stored_dtype(arguments, config)).removeprefix("torch."),
        bf16=bool(arguments.bf16 or arguments.fp16),  # float16 takes as many bytes
        activation_checkpointing=bool(arguments.gradient_checkpointing),
        keep_attention=arguments.keep_attention,
        layers_per_checkpoint=arguments.layers_per_checkpoint,
        tile_tokens=arguments.tile_tokens,
        offload_activations=arguments.offload_activations,
        optimizer_in_backward=arguments.optimizer_in_backward,
        offload_optimizer=arguments.offload_optimizer,
        accumulates=accumulates,
        optim=optim if optim in OPTIMIZERS else STATELESS,
        lora_rank=arguments.lora_rank,
        lora_modules_to_save=tuple(arguments.lora_modules_to_save),
        load_in_4bit=arguments.load_in_4bit,
        clips=arguments.max_grad_norm > 0,
        distill=arguments.distill,
        distill_length=arguments.distill_length or 0,
        gpu=gpu or ("cpu" if arguments.use_cpu else "h100"),
        fsdp=engine.processes if engine.shards_weights else 1,
        sequence_parallel=engine.sequence_parallel,
        sync_each_batch=not (accumulates and engine.shards_weights) or _syncs_each_batch(arguments),
    )


def _syncs_each_batch(arguments: LrkTrainingArguments) -> bool:
    """Whether accelerate reduces gradients after each micro-batch."""
    options = arguments.to_dict()["accelerator_config"]["gradient_accumulation_kwargs"] or {}
    return bool(options.get("sync_each_batch"))


def kernels_implementation(kernels: dict[str, Any]) -> str | None:
    """The planner's name of a choice of kernels, whosever attention it is, or None."""
    runs = {kernel: bool(choice) for kernel, choice in kernels.items()}
    return next((name for name, parts in IMPLEMENTATIONS.items() if parts == runs), None)
