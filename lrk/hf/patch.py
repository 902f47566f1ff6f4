"""`patch`, `unpatch`, `patched`: lrk in one transformers model, and out of it again.

Modules keep their identity and parameters; only their `__class__` changes, to a subclass of the
stock one under the stock name, so that configs, checkpoints and `isinstance` see what they know.
Other models of the process are untouched, and putting the stock class back undoes all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import logging

from lrk.hf.architectures import (
    Architecture,
    architecture_of_type,
    architecture_to_patch,
    check_attention_config,
    sliding_window_of,
    text_config,
)
from lrk.hf.backends import BACKENDS, LRK, OURS, installed_attention, own_attention
from lrk.hf.base_model import LrkBaseModel
from lrk.hf.causal_lm import LrkForCausalLM
from lrk.hf.head import LrkHead, is_known, mesh_of
from lrk.hf.mixed import become, mixed, reaches, stock_class
from lrk.hf.rope import LrkAttention, LrkRotaryEmbedding, check_frequencies
from lrk.hf.stock_forward import hands_on
from lrk.hf.tiles import LrkDecoderLayer, LrkRMSNorm

Model = TypeVar("Model", bound=nn.Module)

_logger = logging.get_logger(__name__)


def patch(
    model: Model,
    rope: bool = True,
    attention: bool | str = True,
    cross_entropy: bool = True,
    tile_tokens: int = 0,
) -> Model:
    """Run a transformers model with lrk's operations. Idempotent; the last call's choice holds.

    Args:
        model: of transformers, of one of the types that `lrk.hf.SUPPORTED` lists, or a peft model
            around one, or a model of several modalities whose text model is one.
        rope: rotate at exact angles from raw positions.
        attention: who attends, with documents that are explicit: True or "lrk" for lrk; or by name
            transformers' integration of "sdpa", "flash_attention_2", "flash_attention_3" or
            "flash_attention_4", which refuses what it cannot do (docs/attention.md). False leaves
            transformers' own backend, where skipped positions are refused.
        cross_entropy: compute the loss without logits; in training `output.logits` is then None
            where labels are given, and in evaluation mode they are formed beside it, unless the
            caller passes `output_logits`.
        tile_tokens: compute norms and MLPs in tiles of so many tokens, and their inside again in
            the backward pass (`lrk.memory.tiles`); 0 computes them whole.

    Returns:
        `model` itself.

    Raises:
        ValueError: for a model type that is not supported, an attention that is not known or not
            installed, attention dropout or weights, RoPE frequencies that are not those of
            transformers, modules whose `forward` is not the stock one, a transformers whose modules
            take other arguments than lrk knows, or negative `tile_tokens`.
    """
    name = installed_attention(attention)
    if tile_tokens < 0:
        raise ValueError(f"tile_tokens is {tile_tokens}; it must be 0 or positive")
    config: Any = getattr(model, "config", None)
    stock = architecture_to_patch(config, f"model is a {type(model).__name__}")
    if name is not None:
        check_attention_config(text_config(config), name)
        _check_window(stock.attention, text_config(config))
    mixins = _mixins_for(stock, rope, cross_entropy, tile_tokens > 0)
    classes = _classes_for(model, stock, mixins)
    if tile_tokens:
        _check_tiles(model)
    for module, kind in classes:
        if issubclass(kind, LrkRotaryEmbedding):
            check_frequencies(module)
    if cross_entropy and isinstance(model, GenerationMixin) and text_config(config) is not config:
        _logger.warning_once(
            f"model is a {type(model).__name__}, whose loss stays its own, with logits: lrk's is "
            f"that of {stock.causal_lm.__name__}"
        )
    unpatch(model)
    for module, kind in classes:
        become(module, kind)
        if isinstance(module, (LrkRMSNorm, LrkDecoderLayer)):
            module._lrk_tile_tokens = tile_tokens
        if isinstance(module, LrkRotaryEmbedding):
            module.prepare()
        if isinstance(module, LrkBaseModel) and isinstance(module, PreTrainedModel):
            _choose_attention(module, name)
    return model


def _choose_attention(module: PreTrainedModel, name: str | None) -> None:
    """Switch to an attention of ours, or for None to transformers' own.

    What is there is noted for `unpatch`. Another's on our documents runs in no model that is not
    patched, so it came with the config of one that is: noted is what transformers would choose.
    """
    stock = module.config._attn_implementation
    if stock in OURS and stock != BACKENDS[LRK]:
        stock = own_attention(module)
    if name is not None:
        module._lrk_stock_attention = stock
    chosen = stock if name is None else BACKENDS[name]
    if chosen != module.config._attn_implementation:
        module.set_attn_implementation(chosen)


def unpatch(model: Model) -> Model:
    """Undo `patch`: the same modules with their stock classes and attention. Returns `model`."""
    patched = [(module, stock_class(type(module))) for module in model.modules()]
    for module, kind in patched:
        if type(module) is kind:
            continue
        if isinstance(module, PreTrainedModel) and "_lrk_stock_attention" in module.__dict__:
            module.set_attn_implementation(vars(module)["_lrk_stock_attention"])
        for name in [name for name in module.__dict__ if name.startswith("_lrk_")]:
            del module.__dict__[name]
        become(module, kind)
    return model


@contextmanager
def patched(
    model: Model,
    rope: bool = True,
    attention: bool | str = True,
    cross_entropy: bool = True,
    tile_tokens: int = 0,
) -> Iterator[Model]:
    """`patch` for the length of a `with` block; `unpatch` at its end."""
    patch(model, rope, attention, cross_entropy, tile_tokens)
    try:
        yield model
    finally:
        unpatch(model)


def check_release(model_type: str) -> None:
    """Raise `ValueError` if the installed transformers is not one that `patch` can work on.

    For callers who want to know it before they read the weights of a model of a supported type.
    """
    stock = architecture_of_type(model_type)
    for kind, mixin in _mixins_for(stock, rope=True, cross_entropy=True, tiles=True).items():
        mixed(mixin, kind)


def _check_window(attention: type[nn.Module], config: Any) -> None:
    """Refuse a window in tokens, where skipped positions need one in positions."""
    window = sliding_window_of(config)
    if window is not None and not hands_on(attention, "position_ids"):
        raise ValueError(
            f"config.sliding_window is {window}, and {attention.__name__} of transformers "
            f"{transformers.__version__} keeps position_ids to itself, so that lrk's attention "
            "could not count the window in positions: install a newer transformers"
        )


def _check_tiles(model: nn.Module) -> None:
    """Refuse to cut what chooses experts for a whole batch of tokens at once."""
    for name, module in model.named_modules():
        if name.endswith(".mlp") and hasattr(module, "experts"):
            raise ValueError(
                f"tile_tokens is given, and {name} is a {type(module).__name__}, whose experts "
                "take their tokens from the whole sequence: leave tile_tokens at 0"
            )


def _mixins_for(
    stock: Architecture, rope: bool, cross_entropy: bool, tiles: bool
) -> dict[type[Any], Any]:
    """By stock class, what `patch` puts in front of it."""
    mixins: dict[type[Any], Any] = {stock.base_model: LrkBaseModel}
    if rope:
        mixins |= {stock.rotary_embedding: LrkRotaryEmbedding, stock.attention: LrkAttention}
    if cross_entropy:
        mixins[stock.causal_lm] = LrkForCausalLM
    if tiles:
        mixins |= {stock.norm: LrkRMSNorm, stock.decoder_layer: LrkDecoderLayer}
    return mixins


def _head_of(causal_lm: Any) -> list[tuple[nn.Module, type[Any]]]:
    """The output embedding and what it becomes, if it is one of those whose factors are known.

    One that transformers has divided among processes is not called for the loss.
    """
    lm_head = causal_lm.lm_head
    kind = stock_class(type(lm_head))
    if not is_known(kind) or mesh_of(lm_head) is not None:
        return []
    _check_own_forward("lm_head", lm_head, LrkHead)
    return [(lm_head, mixed(LrkHead, kind))]


def _check_own_forward(name: str, module: nn.Module, mixin: type[Any]) -> None:
    """Raise `ValueError` for a forward that somebody gave the module alone, unless a hook did."""
    own = vars(module).get("forward")
    if own is not None and "_old_forward" not in vars(module) and not reaches(own, mixin):
        bypassed = (
            f"{name} has a forward of its own, which would bypass lrk (mixed precision of "
            "accelerate, TRL's trainers and torch.compile(model.forward) do so): patch first"
        )
        if mixin in (LrkForCausalLM, LrkHead):
            bypassed += ", or with cross_entropy=False, which leaves the loss to that forward"
        raise ValueError(bypassed)


def _classes_for(
    model: nn.Module, stock: Architecture, mixins: dict[type[Any], Any]
) -> list[tuple[nn.Module, type[Any]]]:
    """The modules to patch and what each becomes. Changes nothing."""
    classes: list[tuple[nn.Module, type[Any]]] = []
    for name, module in model.named_modules():
        kind: Any = stock_class(type(module))
        for expected, mixin in mixins.items():
            if not issubclass(kind, expected):
                continue
            if kind.forward is not expected.forward:
                raise ValueError(
                    f"{name or 'model'} is a {kind.__name__}, whose forward is not that of "
                    f"transformers' {expected.__name__}; lrk would replace it"
                )
            _check_own_forward(name or "model", module, mixin)
            classes.append((module, mixed(mixin, kind)))
            if mixin is LrkForCausalLM:
                classes += _head_of(module)
    if not any(issubclass(kind, stock.base_model) for _, kind in classes):
        raise ValueError(
            f"model is a {type(model).__name__} without a {stock.base_model.__name__} of "
            "transformers inside; lrk attaches to nothing else"
        )
    return classes
