"""`apply_lrk_to`: every model of a type that is made from now on comes patched.

For programs that load their models themselves. What changes are the two `__init__` of an
architecture, which then end with `patch`; models that exist already are untouched.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from lrk.hf.architectures import SUPPORTED, architecture_of_type
from lrk.hf.backends import check_request, installed_attention, own_attention
from lrk.hf.patch import patch

_stock_inits: dict[type[nn.Module], Callable[..., None]] = {}


def apply_lrk_to(
    model_type: str, rope: bool = True, attention: bool | str = True, cross_entropy: bool = True
) -> None:
    """Patch every model of a type that transformers makes from now on.

    The last arguments are those of `lrk.patch`; those of the last call hold. A base model is
    patched too, under whatever head. Making a model raises what `lrk.patch` would, and for an
    `attn_implementation` that `attention` would replace; the one that transformers chooses by
    itself, mostly "sdpa", is replaced.

    Args:
        model_type: one of `lrk.hf.SUPPORTED`.

    Raises:
        ValueError: for a model type that is not supported, and for an attention that is not known
            or not installed.
    """
    if model_type not in SUPPORTED:
        raise ValueError(f"model_type is {model_type!r}; it must be one of {', '.join(SUPPORTED)}")
    _apply(model_type, rope=rope, attention=attention, cross_entropy=cross_entropy)


def apply_lrk_to_llama(
    rope: bool = True, attention: bool | str = True, cross_entropy: bool = True
) -> None:
    """Patch every Llama model that is made from now on; see `apply_lrk_to`."""
    apply_lrk_to("llama", rope, attention, cross_entropy)


def apply_lrk_to_mistral(
    rope: bool = True, attention: bool | str = True, cross_entropy: bool = True
) -> None:
    """Patch every Mistral model that is made from now on; see `apply_lrk_to`."""
    apply_lrk_to("mistral", rope, attention, cross_entropy)


def apply_lrk_to_qwen2(
    rope: bool = True, attention: bool | str = True, cross_entropy: bool = True
) -> None:
    """Patch every Qwen2 model that is made from now on; see `apply_lrk_to`."""
    apply_lrk_to("qwen2", rope, attention, cross_entropy)


def revert_lrk() -> None:
    """Undo all of these: the identical `__init__` again. Models made meanwhile stay patched."""
    while _stock_inits:
        kind, init = _stock_inits.popitem()
        kind.__init__ = init  # type: ignore[method-assign]


def _apply(model_type: str, **parts: bool | str) -> None:
    installed_attention(parts["attention"])
    stock = architecture_of_type(model_type)
    for kind in (stock.base_model, stock.causal_lm):
        init = _stock_inits.setdefault(kind, kind.__init__)
        kind.__init__ = _patching(init, parts)  # type: ignore[method-assign]


def _patching(init: Callable[..., None], parts: dict[str, Any]) -> Callable[..., None]:
    @functools.wraps(init)
    def patching_init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        config = kwargs["config"] if "config" in kwargs else args[0]
        check_request(
            config._attn_implementation, parts["attention"], (None, own_attention(type(self)))
        )
        init(self, *args, **kwargs)
        patch(self, **parts)

    return patching_init
