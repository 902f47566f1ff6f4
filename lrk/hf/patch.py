"""`patch`, `unpatch`, `patched`: lrk in one transformers model, and out of it again.

Modules keep their identity and parameters; only their `__class__` changes, to a subclass of the
stock one under the stock name, so that configs, checkpoints and `isinstance` see what they know.
Other models of the process are untouched, and putting the stock class back undoes all.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from lrk.hf.architectures import architecture_of
from lrk.hf.attention import BACKEND
from lrk.hf.base_model import LrkBaseModel
from lrk.hf.causal_lm import LrkForCausalLM
from lrk.hf.rope import LrkAttention, LrkRotaryEmbedding

Model = TypeVar("Model", bound=nn.Module)


def patch(
    model: Model, rope: bool = True, attention: bool = True, cross_entropy: bool = True
) -> Model:
    """Run a transformers model with lrk's operations. Idempotent; the last call's choice holds.

    Args:
        model: a Llama or Mistral model of transformers, or a peft model around one.
        rope: rotate at exact angles from raw positions.
        attention: attend with the backend `"lrk"`, whose documents are explicit. Without it,
            skipped positions are refused.
        cross_entropy: compute the loss without logits; `output.logits` is then None where labels
            are given, unless the caller passes `output_logits=True`.

    Returns:
        `model` itself.

    Raises:
        ValueError: for a model type that is not supported, or attention dropout.
    """
    stock = architecture_of(model)
    config: Any = model.config
    dropout = config.attention_dropout
    if attention and dropout:
        raise ValueError(
            f"model.config.attention_dropout is {dropout}; the lrk attention has none: set it to 0 "
            "or use attention=False"
        )
    unpatch(model)
    mixins: dict[type, type] = {stock.base_model: LrkBaseModel}
    if rope:
        mixins |= {stock.rotary_embedding: LrkRotaryEmbedding, stock.attention: LrkAttention}
    if cross_entropy:
        mixins[stock.causal_lm] = LrkForCausalLM
    for module in model.modules():
        kind: type = type(module)
        if kind in mixins:
            module.__class__ = _mixed(mixins[kind], kind)
        if attention and isinstance(module, PreTrainedModel) and isinstance(module, LrkBaseModel):
            module._lrk_stock_attention = module.config._attn_implementation
            module.set_attn_implementation(BACKEND)
    return model


def unpatch(model: Model) -> Model:
    """Undo `patch`: the same modules with their stock classes and attention. Returns `model`."""
    for module in model.modules():
        stock = getattr(type(module), "_lrk_stock", None)
        if stock is None:
            continue
        if isinstance(module, PreTrainedModel) and "_lrk_stock_attention" in module.__dict__:
            module.set_attn_implementation(vars(module)["_lrk_stock_attention"])
        for name in [name for name in module.__dict__ if name.startswith("_lrk_")]:
            del module.__dict__[name]
        module.__class__ = stock
    return model


@contextmanager
def patched(
    model: Model, rope: bool = True, attention: bool = True, cross_entropy: bool = True
) -> Iterator[Model]:
    """`patch` for the length of a `with` block; `unpatch` at its end."""
    patch(model, rope=rope, attention=attention, cross_entropy=cross_entropy)
    try:
        yield model
    finally:
        unpatch(model)


@functools.cache
def _mixed(mixin: type, stock: type) -> type:
    """A subclass of both under the name of the stock class, which transformers saves in configs."""
    names = {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
    return type(stock.__name__, (mixin, stock), names | {"_lrk_stock": stock})
