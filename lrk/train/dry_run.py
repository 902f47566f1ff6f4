"""What a run would do: its arguments, its tokens, one sample with its positions, its costs."""

import copy
from collections.abc import Iterator, Sequence

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lrk.hf.distillation import NONE
from lrk.pretrained import meta_model
from lrk.recipe.placement import PlacedSample
from lrk.rope_scaling import rope_description
from lrk.train import run_folder
from lrk.train.arguments import LONGCE, LrkTrainingArguments
from lrk.train.arguments.positions import rope_plan
from lrk.train.disk_space import check_disk_space, checkpoint_interval
from lrk.train.distillation import short_length, teacher_description
from lrk.train.extension import extend_config
from lrk.train.longce import short_contexts
from lrk.train.lora import check_adapters
from lrk.train.new_distances import NewDistances, check_new_distances
from lrk.train.planned_step import device_of, memory_lines, planned_step
from lrk.train.predicted_cost import cost_lines, evaluation_line
from lrk.train.preflight import check_late_parts
from lrk.train.pretrained import check_attention_fits, load_config, load_tokenizer
from lrk.train.session import load_samples
from lrk.train.steps import steps_of
from lrk.train.token_plan import AnySamples, surveyed_samples, token_plan
from lrk.train.trainer import training_placement

SHOWN_SEGMENTS = 12
SHOWN_CHARACTERS = 60


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
    surveyed = [placement.placed(sample) for sample in surveyed_samples(samples)]
    evaluated = 0 if evaluation is None else len(evaluation)
    step = planned_step(arguments, config, device_of(arguments))
    if step.is_refused and step.device.gib is not None:  # a device that is there, or asked for
        raise ValueError(step.reason)
    groups = [
        _one_sample(surveyed, tokenizer),
        _model(arguments, config, original, found),
        token_plan(arguments, samples, surveyed, placement.target_length),
        memory_lines(step, arguments),
        [*cost_lines(arguments, step, samples, evaluated), *_short_contexts(arguments, surveyed)],
        _evaluation_and_disk(arguments, samples, evaluated, disk),
    ]
    return "\n\n".join([arguments.to_yaml().rstrip(), *map("\n".join, groups)])


def _model(
    arguments: LrkTrainingArguments,
    config: PretrainedConfig,
    original: PretrainedConfig,
    found: NewDistances | None,
) -> Iterator[str]:
    """The model, its window and its RoPE, before and after."""
    target, window = arguments.target_length, config.max_position_embeddings
    size = sum(parameter.numel() for parameter in meta_model(config).parameters())
    yield "Model"
    yield f"  name             {arguments.model_name_or_path}, {size:,} parameters"
    if target > window:
        yield f"  window           {window:,} -> {target:,} tokens, {target / window:.3g} times"
    else:
        yield (
            f"  window           {window:,} tokens, which it has already: target_length {target:,} "
            "extends nothing"
        )
    yield f"  RoPE             {_rope(arguments, config, original)}"
    yield f"  new distances    {found or 'none to train: the model has this window already'}"
    if arguments.distill != NONE:
        yield f"  teacher          {teacher_description(arguments, window)}"
    yield f"  folder           {arguments.output_dir}"


def _rope(
    arguments: LrkTrainingArguments, config: PretrainedConfig, original: PretrainedConfig
) -> str:
    """What the run makes of a model's RoPE, of which the original is stretched."""
    before = rope_description(config)
    config = copy.deepcopy(config)
    extend_config(config, arguments.target_length, rope_plan(arguments), original)
    after = rope_description(config)
    if after == before:
        return f"{after}: the model's own, not scaled"
    return f"{before} -> {after}, by rope_scaling {arguments.rope_scaling}"


def _evaluation_and_disk(
    arguments: LrkTrainingArguments, samples: AnySamples, evaluated: int, disk: str
) -> Iterator[str]:
    yield "Evaluation and disk"
    if evaluated:
        yield f"  evaluation       {evaluation_line(arguments, samples, evaluated)}"
    else:
        yield "  evaluation       none: no eval_data"
    yield f"  checkpoints      {checkpoint_interval(arguments)}"
    yield f"  disk             {disk}"


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
        f"  not in it        token_loss {LONGCE} first runs the model forward on short contexts, "
        f"{read / total:.2f} times the tokens\n"
        f"                   of a sample (of the first {len(surveyed):,}), in less memory"
    )
