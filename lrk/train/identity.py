"""What identifies a run: a checkpoint is resumed by the run that wrote it, and by no other.

Everything that the weights follow from: arguments, the content of model and data wherever they
lie, the samples of a step. What does not change them is `FREE`: where things lie, logging,
evaluating, saving, how much memory and how many workers and processes do the same work.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lrk.pretrained import fingerprint_weights
from lrk.recipe import Samples, SampleStream
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.prepared import sha256_of
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.engine import engine_of
from lrk.train.manifest import run_of
from lrk.train.steps import samples_a_step

# Where things lie; what they hold is compared.
_PLACES = frozenset(
    {
        *("output_dir", "model_name_or_path", "gguf_file", "data", "text_column"),
        *("upsample_longer_than", "upsample_factor", "impactful_tokens"),
        *("rope_factors",),
    }
)
# How a run is started, watched and saved; on what, with how much memory and by how many the same
# work is done.
_WAYS = frozenset(
    {
        *("dry_run", "overwrite_output_dir", "resume_from_checkpoint", "local_rank"),
        *("gpu", "dollars_per_hour"),
        *("do_train", "do_eval", "do_predict", "debug", "skip_memory_metrics", "report_to"),
        *("disable_tqdm", "run_name", "project", "include_num_input_tokens_seen"),
        *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint", "ignore_data_skip"),
        *("push_to_hub", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
        *("per_device_eval_batch_size", "bf16_full_eval", "fp16_full_eval"),
        *("use_cpu", "tf32", "kernels", "dataset_num_proc", "use_cache", "auto_find_batch_size"),
        *("keep_attention", "layers_per_checkpoint", "tile_tokens", "offload_activations"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        *("deepspeed", "parallelism_config", "sequence_parallel", "torch_empty_cache_steps"),
    }
)
_WAYS_PREFIXES = (
    *("activation_checkpointing", "gradient_checkpointing", "torch_compile", "ddp_", "fsdp"),
    *("log_", "logging_", "save_", "hub_", "trackio_"),
)
# Of a step their product with the number of processes that share no sample is compared.
_FACTORS = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps"})
# Which of its checkpoints a run ends with.
_BEST = frozenset({"load_best_model_at_end", "metric_for_best_model", "greater_is_better"})
FREE = _PLACES | _WAYS | _FACTORS | _BEST
FREE_PREFIXES = (*_WAYS_PREFIXES, "eval_")
SAMPLES_A_STEP = "samples a step"
_LENGTHS = ("max_steps", "num_train_epochs")
_MODEL, _DATA = "weights", "data"


def is_way(name: str) -> bool:
    """Whether an argument says how the same model is made; `kernels.rope` as `kernels`."""
    return name.partition(".")[0] in _WAYS or name.startswith(_WAYS_PREFIXES)


def settings(arguments: LrkTrainingArguments) -> dict[str, Any]:
    """What identifies a run by its arguments, as JSON has it.

    The length of a run is free where the learning rate does not follow from it.
    """
    values = arguments.to_dict()
    free = set(FREE)
    if _goes_on_alike(values):
        free.update(_LENGTHS)
    elif values["max_steps"] > 0:
        free.add("num_train_epochs")
    found = {
        name: value
        for name, value in values.items()
        if name not in free and not name.startswith(FREE_PREFIXES)
    }
    if isinstance(config := found.get("accelerator_config"), dict):
        # When gradients are reduced, to which the trainer adds.
        found["accelerator_config"] = {
            name: value for name, value in config.items() if name != "gradient_accumulation_kwargs"
        }
    found[SAMPLES_A_STEP] = samples_a_step(arguments)
    if arguments.impactful_tokens is not None:
        found["table of impactful_tokens"] = sha256_of(Path(arguments.impactful_tokens))
    if arguments.rope_factors is not None:
        found["content of rope_factors"] = sha256_of(Path(arguments.rope_factors).expanduser())
    return json.loads(json.dumps(found, default=str))


def _goes_on_alike(values: Mapping[str, Any]) -> bool:
    """Whether a longer run has the learning rates of this one, and others after them."""
    # Of a warmup below 1 it is the share of the run; older releases have the ratio beside it.
    warms_by_share = 0 < values["warmup_steps"] < 1 or bool(values.get("warmup_ratio"))
    kind = values["lr_scheduler_type"]
    return kind == "constant" or (kind == "constant_with_warmup" and not warms_by_share)


def content(
    model: PreTrainedModel, samples: Samples | MixedSamples | SampleStream
) -> dict[str, str]:
    """Fingerprints of the weights that a run starts from, and of its data.

    Of a stream only the first sample is known, so only that is compared.
    """
    return {_MODEL: fingerprint_weights(model), _DATA: samples.fingerprint()}


def check_settings(checkpoint: Path, arguments: LrkTrainingArguments) -> None:
    """Raise `ValueError` if other arguments made a checkpoint."""
    now = settings(arguments)
    written = run_of(checkpoint)
    for key, value in now.items():
        # An argument that one of two releases of transformers has is no difference.
        if key in written and written[key] != value:
            remedy = "give the run's own, or begin another run in another output_dir"
            if key == SAMPLES_A_STEP:
                remedy = _samples_again(written[key], arguments)
            raise ValueError(
                f"resume_from_checkpoint {str(checkpoint)!r} is of a run with {key} "
                f"{written[key]!r}, which is {value!r} now: {remedy}"
            )


def check_content(
    checkpoint: Path, found: Mapping[str, str], arguments: LrkTrainingArguments
) -> None:
    """Raise `ValueError` if a checkpoint is of other weights or data."""
    written = run_of(checkpoint)
    for key, named in ((_MODEL, arguments.model_name_or_path), (_DATA, arguments.data)):
        if key in written and written[key] != found[key]:
            raise ValueError(
                f"resume_from_checkpoint {str(checkpoint)!r} is of a run on other {key} than "
                f"those of {named!r} now (fingerprint {written[key][:8]}, now {found[key][:8]}): "
                "give those of the run, or begin another one in another output_dir"
            )


def _samples_again(before: int, arguments: LrkTrainingArguments) -> str:
    """How the processes of now make as many samples a step as a run had before."""
    batch, parallel = arguments.per_device_train_batch_size, engine_of(arguments).data_parallel
    shared = f", {arguments.sequence_parallel} of which share one" * (
        arguments.sequence_parallel > 1
    )
    made = (
        f"per_device_train_batch_size {batch} x gradient_accumulation_steps "
        f"{arguments.gradient_accumulation_steps} x {parallel} (processes{shared})"
    )
    accumulated, rest = divmod(before, batch * parallel)
    if rest or not accumulated:
        return (
            f"they are {made}, and no gradient_accumulation_steps makes {before} of them; it takes "
            "batches and processes whose product divides it"
        )
    return f"they are {made}; gradient_accumulation_steps {accumulated} makes {before} of them"
