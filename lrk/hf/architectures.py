"""Which classes of transformers lrk attaches to: one row per model type.

A row is no more than the names of classes. What a model type does differently lrk leaves to its own
forwards, in which the function that rotates is another one (`lrk.hf.rope`), or reads off the names
that they use (`lrk.hf.stock_forward`).
"""

import importlib
from dataclasses import dataclass
from typing import Any

from torch import nn

from lrk.hf.unsupported import ATTENTION_ALONE, REASONS


@dataclass(frozen=True)
class Row:
    """A model type.

    Attributes:
        prefix: `Llama` of `LlamaAttention`, and so on.
        package: of `transformers.models`, where it is not the model type.
        base_model: class, where it is not the prefix and `Model`.
    """

    prefix: str
    package: str | None = None
    base_model: str | None = None


ROWS = {
    "gemma2": Row("Gemma2"),
    "gemma3_text": Row("Gemma3", "gemma3", "Gemma3TextModel"),
    "glm4": Row("Glm4"),
    "gpt_oss": Row("GptOss"),
    "granite": Row("Granite"),
    "llama": Row("Llama"),
    "ministral3": Row("Ministral3"),
    "mistral": Row("Mistral"),
    "mixtral": Row("Mixtral"),
    "olmo2": Row("Olmo2"),
    "olmo3": Row("Olmo3"),
    "phi3": Row("Phi3"),
    "qwen2": Row("Qwen2"),
    "qwen3": Row("Qwen3"),
    "qwen3_moe": Row("Qwen3Moe"),
    "smollm3": Row("SmolLM3"),
}
SUPPORTED = tuple(sorted(ROWS))


@dataclass(frozen=True)
class Architecture:
    """The stock classes of one model type that lrk replaces."""

    rotary_embedding: type[nn.Module]
    attention: type[nn.Module]
    norm: type[nn.Module]
    decoder_layer: type[nn.Module]
    base_model: type[nn.Module]
    causal_lm: type[nn.Module]


def architecture_of(config: Any, subject: str) -> Architecture:
    """The architecture of a config of transformers, or of the text model inside it.

    Args:
        config: what has a `model_type`, and a `text_config` if it is of several modalities.
        subject: who asks about what, for the message, as in "model is a BertModel".

    Raises:
        ValueError: if the model type is not supported; the message says why, or lists those that
            are.
    """
    model_type = getattr(text_config(config), "model_type", None)
    if model_type not in ROWS:
        raise ValueError(f"{subject} of model type {_unsupported(config)}")
    return architecture_of_type(model_type)


def architecture_to_patch(config: Any, subject: str) -> Architecture:
    """`architecture_of` for `lrk.patch`, whose refusal names what runs without a patch."""
    model_type = getattr(config, "model_type", None)
    if model_type in ATTENTION_ALONE:
        raise ValueError(
            f"{subject} of model type {_unsupported(config)}; lrk's attention alone was tested in "
            'it, with skipped positions: model.set_attn_implementation("lrk")'
        )
    return architecture_of(config, subject)


def text_config(config: Any) -> Any:
    """The config itself, or that of the text model of several modalities."""
    return getattr(config, "text_config", None) or config


def check_supported(config: Any, subject: str) -> None:
    """Raise `ValueError` for a config that is not itself of a supported type, saying why.

    Args:
        subject: as of `architecture_of`.
    """
    if config.model_type not in ROWS:
        raise ValueError(f"{subject} of model type {_unsupported(config)}")


def _unsupported(config: Any) -> str:
    """The end of a sentence: the model type, and why it is not supported."""
    model_type = getattr(config, "model_type", None)
    text = text_config(config)
    if text is not config and text.model_type in ROWS:
        return (
            f"{model_type!r}, of several modalities: save its text model by itself, which is of "
            f"the supported type {text.model_type!r}"
        )
    reason = REASONS.get(getattr(text, "model_type", None) or "")
    return f"{model_type!r}; {reason or 'supported are ' + ', '.join(SUPPORTED)}"


def architecture_of_type(model_type: str) -> Architecture:
    """The architecture of one of `SUPPORTED`."""
    row = ROWS[model_type]
    package = row.package or model_type
    module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    return Architecture(
        rotary_embedding=getattr(module, f"{row.prefix}RotaryEmbedding"),
        attention=getattr(module, f"{row.prefix}Attention"),
        norm=getattr(module, f"{row.prefix}RMSNorm"),
        decoder_layer=getattr(module, f"{row.prefix}DecoderLayer"),
        base_model=getattr(module, row.base_model or f"{row.prefix}Model"),
        causal_lm=getattr(module, f"{row.prefix}ForCausalLM"),
    )


def check_attention_config(config: Any, attention: str) -> None:
    """Raise `ValueError` for dropout and for weights, which no attention of `lrk.patch` has."""
    for name, verb, off in (("attention_dropout", "has", 0), ("output_attentions", "gives", False)):
        value = getattr(config, name, None)
        if value:
            raise ValueError(
                f"config.{name} is {value}; the {attention} attention {verb} none: set it to {off} "
                "or use attention=False"
            )


def sliding_window_of(config: Any) -> int | None:
    """Tokens of a model's sliding window; None if no layer has one."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types and "sliding_attention" not in layer_types:
        return None
    return getattr(config, "sliding_window", None)
