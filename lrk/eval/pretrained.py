"""Loading the model to evaluate, and saying which one it is."""

import hashlib
import json

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lrk.device_map import input_device
from lrk.eval.arguments import EvalArguments
from lrk.hf import SUPPORTED, patch
from lrk.hf.architectures import check_supported
from lrk.hf.patch import check_release
from lrk.pretrained import check_config, check_vocabulary, load_auto, load_weights

# Token ids of a text on which weights that are NaN show, whatever is measured.
_TRIED_TOKENS = 8


def load_config(arguments: EvalArguments) -> PretrainedConfig:
    """The config of the model.

    Raises:
        ValueError: if there is no such model, `patch` is true, or `decoding` given, for a type
            that is not supported, or lrk does not support the installed transformers.
    """
    config = load_auto(AutoConfig, "model", str(arguments.model), arguments.gguf_file)
    if arguments.patch or arguments.decoding:
        asked = "patch is true" if arguments.patch else f"decoding is {arguments.decoding!r}"
        check_supported(config, f"{asked}, but model {arguments.model!r} is")
    if is_patched(arguments, config):
        check_release(config.model_type)
    check_config("model", str(arguments.model), config)
    return config


def load_tokenizer(arguments: EvalArguments, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer.

    Raises:
        ValueError: if there is none, or it has tokens that the model has not.
    """
    if arguments.tokenizer is None:
        tokenizer = load_auto(AutoTokenizer, "model", str(arguments.model), arguments.gguf_file)
    else:
        tokenizer = load_auto(AutoTokenizer, "tokenizer", arguments.tokenizer, None)
    check_vocabulary(tokenizer, config.vocab_size)
    # Prompts longer than the model's window are the point here: no warning about them.
    tokenizer.model_max_length = 10**9
    return tokenizer


def load_model(arguments: EvalArguments) -> PreTrainedModel:
    """The weights on the device, in evaluation mode, patched if the arguments say so."""
    model = _load_weights(arguments, "model", str(arguments.model), arguments.gguf_file)
    return patch(model) if is_patched(arguments, model.config) else model


def load_key_model(arguments: EvalArguments, vocabulary: str) -> PreTrainedModel:
    """The model that finds key tokens.

    Args:
        vocabulary: fingerprint of the tokenizer that the texts are written in.

    Raises:
        ValueError: if it has another tokenizer.
    """
    name = str(arguments.key_model)
    own = load_auto(AutoTokenizer, "key_model", name, None)
    if fingerprint_tokenizer(own) != vocabulary:
        raise ValueError(f"key_model {name!r} has another tokenizer than the model")
    model = _load_weights(arguments, "key_model", name, None)
    return patch(model) if is_patched(arguments, model.config) else model


def is_patched(arguments: EvalArguments, config: PretrainedConfig) -> bool:
    """Whether lrk's operations run: if asked for, or by default where the type is supported."""
    return config.model_type in SUPPORTED if arguments.patch is None else arguments.patch


def fingerprint_config(config: PretrainedConfig) -> str:
    """Of all that the config holds but the path it came from."""
    values = config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype"):
        values.pop(name, None)
    return _digest(json.dumps(values, sort_keys=True, default=str).encode())


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the vocabulary, and of rules and chat template where the tokenizer shows them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else ""
    parts = [tokenizer.get_vocab(), rules, tokenizer.chat_template]
    return _digest(json.dumps(parts, sort_keys=True, default=str).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _load_weights(
    arguments: EvalArguments, argument: str, name: str, gguf_file: str | None
) -> PreTrainedModel:
    options = {} if arguments.device_map is None else {"device_map": arguments.device_map}
    model = load_weights(argument, name, gguf_file, dtype=arguments.dtype, **options)
    if arguments.own_device is not None:
        model = model.to(arguments.own_device)
    model.eval()
    with torch.no_grad():
        logits = model(torch.arange(_TRIED_TOKENS, device=input_device(model))[None]).logits
    if logits.isnan().any():
        raise ValueError(f"{argument} {name!r} has logits that are NaN: what it says means nothing")
    return model
