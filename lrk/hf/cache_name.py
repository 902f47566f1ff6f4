"""What transformers calls the cache: `past_key_values`, from 5.24 on `cache`.

Modules of transformers take either for an argument like any other that they hand through to the
attention, which ignores it: under the wrong name keys are silently not stored. So callers of lrk
may use both names, and what lrk hands on bears the one of the installed release.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.models.llama.modeling_llama import LlamaAttention

OLD_NAME, NEW_NAME = "past_key_values", "cache"
_takes_the_new = NEW_NAME in inspect.signature(LlamaAttention.forward).parameters
CACHE_NAME = NEW_NAME if _takes_the_new else OLD_NAME


def named_cache(cache: Cache | None) -> dict[str, Cache | None]:
    """The cache as a keyword argument of transformers' modules and outputs."""
    return {CACHE_NAME: cache}


def cache_of(output: Any) -> Cache | None:
    """The cache in an output of a model."""
    return getattr(output, CACHE_NAME)


def update(
    cache: Cache, key: Tensor, value: Tensor, layer_idx: int, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """All keys and values of a layer, the new ones added, as the stock attention does it.

    Releases with the new name also tell the cache what the attention is told: those of other
    packages find their places there.
    """
    told = {"kwargs": kwargs} if CACHE_NAME == NEW_NAME else {}
    return cache.update(key, value, layer_idx, **told)


def under_its_name(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a forward of transformers, in which the cache may have either name.

    Raises:
        ValueError: for two caches.
    """
    other = OLD_NAME if CACHE_NAME == NEW_NAME else NEW_NAME
    if other not in kwargs:
        return kwargs
    caches = kwargs.pop(other), kwargs.get(CACHE_NAME)
    return kwargs | named_cache(_the_one(*caches))


def _the_one(first: Cache | None, second: Cache | None) -> Cache | None:
    if first is not None and second is not None and first is not second:
        raise ValueError("cache and past_key_values are two names of one argument; give one")
    return second if first is None else first


def either_cache_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method with an argument `cache`: callers may say `past_key_values` too.

    Its signature shows the name of the installed release, for code that looks there.

    Raises:
        ValueError: in a call that gives two caches.
    """

    @functools.wraps(forward)
    def renaming(self: Any, *args: Any, **kwargs: Any) -> Any:
        if OLD_NAME in kwargs:
            cache = _the_one(kwargs.pop(OLD_NAME), kwargs.get(NEW_NAME))
            if cache is not None:
                kwargs[NEW_NAME] = cache
        return forward(self, *args, **kwargs)

    signature = inspect.signature(forward)
    parameters = [
        each.replace(name=CACHE_NAME) if each.name == NEW_NAME else each
        for each in signature.parameters.values()
    ]
    renaming.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return renaming
