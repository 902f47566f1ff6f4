"""Loading parts of a pretrained model, and the sentence where that fails."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed as zero

from lrk.device_map import weights_brought
from lrk.weight_index import read_index

# Elements of a tensor that its fingerprint reads.
_SAMPLED = 1024


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
        loaded = auto_class.from_pretrained(str(Path(name).expanduser()), **options)
        if isinstance(loaded, PreTrainedTokenizerBase):
            loaded.decode(loaded("a").input_ids)  # a damaged one may load all the same
        return loaded
    # What transformers raises from a damaged file has no end: ZeroDivisionError, AttributeError ...
    except Exception as error:
        raise ValueError(f"{argument} {name!r} cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    line = str(error).strip().split("\n")[0]
    if isinstance(error.__cause__, GatedRepoError):
        line += " Accept its licence on its page of the hub, then run `hf auth login`."
    return line if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {line}"


def check_config(argument: str, name: str, config: PretrainedConfig) -> None:
    """Raise `ValueError` unless a causal language model can be built of a config, less its weights.

    Args:
        argument: that names the model, for the sentence.
    """
    try:
        meta_model(config)
    # As in `load_auto`.
    except Exception as error:
        raise ValueError(
            f"{argument} {name!r} has a config that describes no causal language model: "
            f"{_reason(error)}"
        ) from error


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The causal language model of a config, without weights: all but their values can be asked.

    The config stays as it is; transformers would note in it what it chose.
    """
    with torch.device("meta"), made_whole():
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


@contextmanager
def made_whole() -> Iterator[None]:
    """Models that are made in the block are of one process: ZeRO-3 would share them out at once."""
    shared_out_by = zero._hf_deepspeed_config_weak_ref
    zero.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        zero._hf_deepspeed_config_weak_ref = shared_out_by


def load_weights(argument: str, name: str, gguf_file: str | None, **options: Any) -> Any:
    """The causal language model with its weights, those of a GGUF file dequantised.

    Raises:
        ValueError: as `load_auto`.
    """
    if gguf_file is None:
        try:
            read_index(Path(name).expanduser())
        except ValueError as error:
            raise ValueError(f"{argument} {name!r} cannot be loaded: {error}") from error
    # Releases of transformers that can keep GGUF weights packed would refuse to train or save them.
    if gguf_file and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return load_auto(AutoModelForCausalLM, argument, name, gguf_file, **options)


def default_device() -> str:
    """The kind of accelerator that this machine has, as PyTorch names it, or "cpu"."""
    # Without the check it names what PyTorch was built for, also where there is none.
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def check_device(name: str) -> None:
    """Raise `ValueError` if a device is unknown to PyTorch, or this machine has none of it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown to torch") from error
    has = default_device()
    count = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if device.type not in ("cpu", has) or (device.index or 0) >= count:
        what = f"cpu and {count} of {has}" if has != "cpu" else "cpu alone"
        raise ValueError(f"device {name!r} is not there; this machine has {what}")


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise `ValueError` if a token of the tokenizer has no row among `vocab_size` embeddings."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer has token ids up to {largest:,}, but the model's vocabulary ends at "
            f"{vocab_size - 1:,}: they do not belong together, or the embeddings need resizing"
        )


def fingerprint_weights(model: PreTrainedModel) -> str:
    """Of 1,024 elements of each parameter, evenly spread: training changes some of them.

    Weights that a `device_map` left on the host or on disk are read one module at a time. Of those
    that ZeRO-3 has cut up all processes must ask.
    """
    digest, tied = hashlib.sha256(), None
    if model.config.get_text_config().tie_word_embeddings:
        tied = getattr(model.get_output_embeddings(), "weight", None)
    for name, parameter in model.named_parameters():
        is_input = parameter is getattr(model.get_input_embeddings(), "weight", None)
        if parameter.is_meta and parameter is tied and not is_input:
            continue  # Brought for a call and left again, the two are no longer one object.
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        with weights_brought(module), _gathered(parameter):
            flat = module.get_parameter(leaf).detach().flatten()
            sampled = flat[:: max(flat.numel() // _SAMPLED, 1)].double().cpu()
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _gathered(parameter: nn.Parameter) -> Iterator[None]:
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield
