"""The class that a patched module becomes: its stock class with lrk's methods in front.

It bears the name of the stock class, which transformers writes into configs and looks up in its
registries. So pickle would not find it by its name: it is pickled as the two classes it is made of.
"""

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn


def mixed(mixin: Any, stock: Any) -> type[Any]:
    """The subclass of both, the same one as long as the stock class has the same forward.

    Args:
        mixin: has a `forward`, which replaces that of `stock`; and where that is made of the stock
            one, a classmethod `over`, which gives what it needs of it as attributes of the class.
        stock: a class of modules.

    Raises:
        ValueError: if `stock` is not as `over` expects it.
    """
    return _mixed(mixin, stock, stock.forward)


@functools.cache
def _mixed(mixin: Any, stock: Any, stock_forward: object) -> type[Any]:
    over = getattr(mixin, "over", None)
    namespace = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "forward": _late_forward(mixin, stock),
        "__reduce_ex__": _reduce_ex,
        "_lrk_mixin": mixin,
        "_lrk_stock": stock,
        **(over(stock) if over else {}),
    }
    return type(stock.__name__, (mixin, stock), namespace)


def stock_class(kind: type[Any]) -> type[Any]:
    """What `kind` was mixed from, or `kind` itself.

    Raises:
        ValueError: for a subclass of a mixed class, as FSDP derives: only who derived it can undo
            that.
    """
    own = vars(kind).get("_lrk_stock")
    if own is None and hasattr(kind, "_lrk_stock"):
        raise ValueError(
            f"{kind.__name__} was derived from a patched class after the patch (FSDP does so); "
            "patch and unpatch before"
        )
    return kind if own is None else own


def become(module: nn.Module, kind: type[Any]) -> None:
    """Change the class of a module, and what accelerate's hooks call as its forward."""
    module.__class__ = kind
    if "_old_forward" in vars(module):
        vars(module)["_old_forward"] = MethodType(kind.forward, module)


def reaches(forward: Callable[..., Any], mixin: type[Any]) -> bool:
    """Whether an instance's own `forward`, such as accelerate's autocast, calls that of `mixin`."""
    innermost = inspect.unwrap(forward)
    return getattr(innermost, "__func__", innermost) is inspect.unwrap(mixin.forward)


def _late_forward(mixin: type[Any], stock: type[Any]) -> Callable[..., Any]:
    """The mixin's forward, or after unpatch the stock one, for a caller who kept this function.

    One that hands on all that it is given shows the signature of the stock forward, the others how
    that describes the arguments that it does not name: transformers looks there for what a model
    takes.
    """

    @functools.wraps(mixin.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        owner = mixin if isinstance(self, mixin) else type(self)
        return owner.forward(self, *args, **kwargs)

    forward.__signature__ = _shown(mixin, stock)  # type: ignore[attr-defined]
    return forward


def _shown(mixin: type[Any], stock: type[Any]) -> inspect.Signature:
    ours, theirs = (inspect.signature(kind.forward) for kind in (mixin, stock))
    if any(each.kind is each.VAR_POSITIONAL for each in ours.parameters.values()):
        return theirs
    others = {each.kind: each for each in theirs.parameters.values()}
    return ours.replace(
        parameters=[
            others.get(each.kind, each) if each.kind is each.VAR_KEYWORD else each
            for each in ours.parameters.values()
        ]
    )


def _reduce_ex(self: Any, protocol: int) -> tuple[Any, ...]:
    # From protocol 2 on: how to make an empty object, from what, and its state.
    kind = type(self)
    _, _, *state = kind._lrk_stock.__reduce_ex__(self, max(protocol, 2))
    return (_empty, (kind._lrk_mixin, kind._lrk_stock), *state)


def _empty(mixin: Any, stock: Any) -> object:
    return object.__new__(mixed(mixin, stock))
