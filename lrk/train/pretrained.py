"""Loading what a run starts from, and checking that its parts fit before the weights are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lrk.hf import flash_attention
from lrk.hf.architectures import check_supported, sliding_window_of
from lrk.hf.groups import check_groups
from lrk.hf.patch import check_release
from lrk.hf.sdpa import IMPLEMENTATION as SDPA
from lrk.hf.sinks import check_sinks
from lrk.memory.four_bits import forbid_repacking, nf4
from lrk.pretrained import check_config, check_vocabulary, load_auto, load_weights
from lrk.train.arguments import ATTENTION, LrkTrainingArguments
from lrk.train.arguments.positions import rope_plan
from lrk.train.extension import stretched_rope

_ARGUMENT = "model_name_or_path"


def load_config(
    arguments: LrkTrainingArguments, original: PretrainedConfig | None = None
) -> PretrainedConfig:
    """The model's config.

    Args:
        original: in a stage, the config of the model that the whole run begins with.

    Raises:
        ValueError: if there is no such model, or its type, its RoPE or the installed transformers
            is not supported.
    """
    config = load_auto(AutoConfig, _ARGUMENT, _name(arguments), arguments.gguf_file)
    check_supported(config, f"model_name_or_path {arguments.model_name_or_path!r} is")
    check_release(config.model_type)
    check_config(_ARGUMENT, _name(arguments), config)
    check_groups(config, arguments.layers_per_checkpoint)
    stretched_rope(config, arguments.target_length, rope_plan(arguments), original)
    return config


def check_attention_fits(arguments: LrkTrainingArguments, config: PretrainedConfig) -> None:
    """Refuse what another's attention would refuse in a step, or after all of them in evaluation.

    A window in tokens and one in positions are the same where no position lies beyond it.

    Raises:
        ValueError: for sinks, for weights that its kernels do not take, and with a sliding window
            for positions that skip farther than it reaches, or with sdpa for longer samples.
    """
    name = arguments.kernels[ATTENTION]
    if isinstance(name, bool):
        return
    check_sinks(config, "kernels.attention", name)
    instead = "or leave kernels.attention true"
    dtype = stored_dtype(arguments, config)
    halves = dtype in flash_attention.DTYPES or arguments.bf16 or arguments.fp16
    if not (halves or arguments.use_cpu):
        raise ValueError(
            f"kernels.attention is {name!r}, whose kernels take float16 and bfloat16, and the "
            f"weights are {dtype}: set bf16 or dtype, {instead}"
        )
    window = sliding_window_of(config)
    if window is None:
        return
    length = arguments.train_length
    if name == SDPA and length > window:
        raise ValueError(
            f"train_length is {length} with kernels.attention {name!r}, which has no windows, and "
            f"the model's sliding_window is {window}: shorten samples, {instead}"
        )
    for argument, reach in _reaches_of_skips(arguments):
        if reach > window:
            raise ValueError(
                f"{argument} is {reach} with kernels.attention {name!r}, which counts the model's "
                f"sliding_window of {window} in tokens, where positions skip: keep {argument} "
                f"within the window, take contiguous positions, {instead}"
            )


def _reaches_of_skips(arguments: LrkTrainingArguments) -> Iterator[tuple[str, int]]:
    """How far positions reach that may skip, with the argument that says so."""
    length, reach = arguments.train_length, arguments.reach_length
    spreads = arguments.position_method != "contiguous" and arguments.contiguous_share < 1
    # A document of a packed sample is spread by itself, also over no more than the sample.
    if spreads and (reach > length or arguments.pack):
        times = "" if arguments.position_reach == 1 else "position_reach times "
        yield f"{times}target_length", reach
    if arguments.eval_data and arguments.eval_position_method != "contiguous":
        yield from (
            ("eval_lengths", each) for each in arguments.eval_lengths or [] if each > length
        )


def load_tokenizer(
    arguments: LrkTrainingArguments, config: PretrainedConfig
) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ValueError: if it has tokens that the model has not.
    """
    tokenizer = load_auto(AutoTokenizer, _ARGUMENT, _name(arguments), arguments.gguf_file)
    check_vocabulary(tokenizer, config.vocab_size)
    return tokenizer


def load_model(arguments: LrkTrainingArguments) -> PreTrainedModel:
    """The pretrained weights in `arguments.dtype`.

    Linear layers are in 4 bits if `load_in_4bit`, and multiplied in the dtype of autocast, or
    without it in that of the weights.

    Raises:
        ValueError: if they cannot be loaded, or some are not in the files.
    """
    options: dict[str, Any] = {"dtype": arguments.dtype}
    if arguments.load_in_4bit:
        options["quantization_config"] = nf4(_dtype_of_products(arguments))
    name = _name(arguments)
    model, info = load_weights(
        _ARGUMENT, name, arguments.gguf_file, output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{_ARGUMENT} {name!r} has no tensor {missing[0]}{more}, which its config asks for: "
            "training would begin with random numbers there"
        )
    forbid_repacking(model)
    return model


def _dtype_of_products(arguments: LrkTrainingArguments) -> torch.dtype:
    if arguments.bf16:
        return torch.bfloat16
    if arguments.fp16:
        return torch.float16
    return stored_dtype(arguments, load_config(arguments))


def stored_dtype(arguments: LrkTrainingArguments, config: PretrainedConfig) -> torch.dtype:
    """Of the weights in training; for `auto` the config's, and float32 if it names none."""
    if arguments.dtype != "auto":
        return getattr(torch, arguments.dtype)
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _name(arguments: LrkTrainingArguments) -> str:
    name = arguments.model_name_or_path
    if not name:
        raise ValueError(f"{_ARGUMENT} is missing; it must name a folder or a hub model")
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{_ARGUMENT} {name!r} is an adapter; merge it into its base model first")
    return name
