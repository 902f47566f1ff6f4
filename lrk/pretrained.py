"""Loading parts of a pretrained model, and the sentence where that fails."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase


def load_auto(
    auto_class: Any, argument: str, name: str, gguf_file: str | None, **options: Any
) -> Any:
    """What an auto class of transformers makes of a folder or a hub name.

    Args:
        argument: that names it, for the sentence.
        gguf_file: file in that folder, or None.

    Raises:
        ValueError: in one sentence.
    """
    if not name:
        raise ValueError(f"{argument} is empty; it must name a folder or a hub model")
    if name[0] in "./~" and not Path(name).expanduser().is_dir():
        raise ValueError(f"{argument} {name!r} does not exist")
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    # Without the explicit False transformers would ask at the terminal.
    options["trust_remote_code"] = False
    try:
        return auto_class.from_pretrained(str(Path(name).expanduser()), **options)
    # A file that is cut short is an error of safetensors, weights of other shapes a RuntimeError.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{argument} {name!r} cannot be loaded: {reason}") from error


def load_weights(argument: str, name: str, gguf_file: str | None, **options: Any) -> Any:
    """The causal language model with its weights, those of a GGUF file dequantised.

    Raises:
        ValueError: as `load_auto`.
    """
    # Releases of transformers that can keep GGUF weights packed would refuse to train or save them.
    if gguf_file and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return load_auto(AutoModelForCausalLM, argument, name, gguf_file, **options)


def default_device() -> str:
    """The kind of accelerator that this machine has, as PyTorch names it, or "cpu"."""
    # Without the check it names what PyTorch was built for, also where there is none.
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise `ValueError` if a token of the tokenizer has no row among `vocab_size` embeddings."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer has token ids up to {largest:,}, but the model's vocabulary ends at "
            f"{vocab_size - 1:,}: they do not belong together, or the embeddings need resizing"
        )
