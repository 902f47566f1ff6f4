"""Which classes of transformers lrk attaches to: one row per architecture.

The modules of these architectures differ in nothing that lrk replaces, so a row is a name: class
`Llama` + `Attention` of `transformers.models.llama.modeling_llama`, and so on.
"""

import importlib
from dataclasses import dataclass

from torch import nn

CLASS_PREFIXES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
SUPPORTED = tuple(sorted(CLASS_PREFIXES))


@dataclass(frozen=True)
class Architecture:
    """The four stock classes of one model type that lrk replaces."""

    rotary_embedding: type[nn.Module]
    attention: type[nn.Module]
    base_model: type[nn.Module]
    causal_lm: type[nn.Module]


def architecture_of(model: nn.Module) -> Architecture:
    """The row for a transformers model.

    Raises:
        ValueError: if its `config.model_type` is not supported; the message lists those that are.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in CLASS_PREFIXES:
        raise ValueError(
            f"model is a {type(model).__name__} of model type {model_type!r}; supported are "
            f"{', '.join(SUPPORTED)}"
        )
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    prefix = CLASS_PREFIXES[model_type]
    return Architecture(
        rotary_embedding=getattr(module, f"{prefix}RotaryEmbedding"),
        attention=getattr(module, f"{prefix}Attention"),
        base_model=getattr(module, f"{prefix}Model"),
        causal_lm=getattr(module, f"{prefix}ForCausalLM"),
    )
