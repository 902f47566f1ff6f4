"""Loading what a run starts from, and checking that its parts fit before the weights are read."""

from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lrk.hf import SUPPORTED
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.extension import check_extensible


def load_config(arguments: LrkTrainingArguments) -> PretrainedConfig:
    """The model's config.

    Raises:
        ValueError: if there is no such model, or its type or RoPE is not supported.
    """
    config = _load(AutoConfig, arguments)
    if config.model_type not in SUPPORTED:
        raise ValueError(
            f"model_name_or_path {arguments.model_name_or_path!r} is of model type "
            f"{config.model_type!r}; supported are {', '.join(SUPPORTED)}"
        )
    check_extensible(config, arguments.target_length)
    return config


def load_tokenizer(
    arguments: LrkTrainingArguments, config: PretrainedConfig
) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ValueError: if it has tokens that the model has not.
    """
    tokenizer = _load(AutoTokenizer, arguments)
    check_vocabulary(tokenizer, config.vocab_size)
    return tokenizer


def load_model(arguments: LrkTrainingArguments) -> PreTrainedModel:
    """The pretrained weights in `arguments.dtype`."""
    options: dict[str, Any] = {"dtype": arguments.dtype}
    # Releases of transformers that can keep GGUF weights packed would refuse to train or save them.
    if arguments.gguf_file and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return _load(AutoModelForCausalLM, arguments, **options)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise `ValueError` if a token of the tokenizer has no row among `vocab_size` embeddings."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer has token ids up to {largest:,}, but the model's vocabulary ends at "
            f"{vocab_size - 1:,}: they do not belong together, or the embeddings need resizing"
        )


def _load(auto_class: Any, arguments: LrkTrainingArguments, **options: Any) -> Any:
    name = arguments.model_name_or_path
    if not name:
        raise ValueError("model_name_or_path is missing; it must name a folder or a hub model")
    if name[0] in "./~" and not Path(name).expanduser().is_dir():
        raise ValueError(f"model_name_or_path {name!r} does not exist")
    if arguments.gguf_file is not None:
        options["gguf_file"] = arguments.gguf_file
    try:
        return auto_class.from_pretrained(str(Path(name).expanduser()), **options)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"model_name_or_path {name!r} cannot be loaded: {reason}") from error
