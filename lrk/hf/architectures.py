"""Which classes of transformers lrk attaches to: one row per architecture.

The modules of these architectures differ in nothing that lrk replaces, so a row is a name: class
`Llama` + `Attention` of `transformers.models.llama.modeling_llama`, and so on.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from torch import nn

CLASS_PREFIXES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
SUPPORTED = tuple(sorted(CLASS_PREFIXES))


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
    """The row for a config of transformers.

    Args:
        config: what has a `model_type`.
        subject: who asks about what, for the message, as in "model is a BertModel".

    Raises:
        ValueError: if the model type is not supported; the message lists those that are.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in CLASS_PREFIXES:
        raise ValueError(
            f"{subject} of model type {model_type!r}; supported are {', '.join(SUPPORTED)}"
        )
    return architecture_of_type(model_type)


def architecture_of_type(model_type: str) -> Architecture:
    """The row for one of `SUPPORTED`."""
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    prefix = CLASS_PREFIXES[model_type]
    return Architecture(
        rotary_embedding=getattr(module, f"{prefix}RotaryEmbedding"),
        attention=getattr(module, f"{prefix}Attention"),
        norm=getattr(module, f"{prefix}RMSNorm"),
        decoder_layer=getattr(module, f"{prefix}DecoderLayer"),
        base_model=getattr(module, f"{prefix}Model"),
        causal_lm=getattr(module, f"{prefix}ForCausalLM"),
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
