"""Loading what a run starts from, and checking that its parts fit before the weights are read."""

import json
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
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
from lrk.train.lora import four_bits


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
    """The pretrained weights in `arguments.dtype`; linear layers in 4 bits if `load_in_4bit`."""
    options: dict[str, Any] = {"dtype": arguments.dtype}
    if arguments.load_in_4bit:
        options["quantization_config"] = four_bits(arguments)
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


def check_checkpoint(checkpoint: Path, arguments: LrkTrainingArguments, config: Any) -> None:
    """Raise `ValueError` if a checkpoint is of another model than the one that is trained on."""
    what = f"resume_from_checkpoint {str(checkpoint)!r}"
    adapter = checkpoint / "adapter_config.json"
    if adapter.is_file() != bool(arguments.lora_rank):
        held = "a LoRA adapter" if adapter.is_file() else "no LoRA adapter"
        raise ValueError(f"{what} holds {held}, but lora_rank is {arguments.lora_rank}")
    if adapter.is_file():
        saved = json.loads(adapter.read_text(encoding="utf-8"))
        base, name = saved.get("base_model_name_or_path"), arguments.model_name_or_path
        if base and name and Path(base).name != Path(name).name:  # folders may have been moved
            raise ValueError(
                f"{what} holds an adapter for {base!r}, but model_name_or_path is {name!r}"
            )
        if saved.get("r") != arguments.lora_rank:
            raise ValueError(
                f"{what} holds an adapter of rank {saved.get('r')}, but lora_rank is "
                f"{arguments.lora_rank}"
            )
    elif (checkpoint / "config.json").is_file():
        saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
            if saved.get(name) != getattr(config, name):
                raise ValueError(
                    f"{what} is of a model with {name} {saved.get(name)}, but the model that is "
                    f"trained has {getattr(config, name)}"
                )


def _load(auto_class: Any, arguments: LrkTrainingArguments, **options: Any) -> Any:
    name = arguments.model_name_or_path
    if not name:
        raise ValueError("model_name_or_path is missing; it must name a folder or a hub model")
    if name[0] in "./~" and not Path(name).expanduser().is_dir():
        raise ValueError(f"model_name_or_path {name!r} does not exist")
    if arguments.gguf_file is not None:
        options["gguf_file"] = arguments.gguf_file
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"model_name_or_path {name!r} is an adapter; merge it into its base model first"
        )
    # Without the explicit False transformers would ask at the terminal.
    options["trust_remote_code"] = False
    try:
        return auto_class.from_pretrained(str(folder), **options)
    # A file that is cut short is an error of safetensors, weights of other shapes a RuntimeError.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model_name_or_path {name!r} cannot be loaded: {reason}") from error
