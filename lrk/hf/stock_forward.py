"""The forward of a class of transformers: what it reads, and itself with another function inside.

transformers writes each model out in full, so that a forward names all that it does: the modules
and settings that it reads, the functions that it calls. So lrk replaces a function inside a forward
where it can (`rebound`), and keeps no copy of what is around it. Where it has a forward of its own,
a release that reads something new is told by the names (`check_names`).
"""

import inspect
from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any, cast

import transformers

INSTALL = "install a release of transformers that docs/support.md lists"


def stock_forward(kind: type[Any]) -> FunctionType:
    """The forward of a class without its decorators."""
    return cast(FunctionType, inspect.unwrap(kind.forward))


def names_read(kind: type[Any]) -> tuple[str, ...]:
    """The attributes, globals and functions that a class's forward names, in order of their first
    use."""
    return stock_forward(kind).__code__.co_names


def check_names(kind: type[Any], known: Collection[str], instead: str = INSTALL) -> None:
    """Raise `ValueError` if the forward of a class does something that lrk's does not know of.

    Args:
        known: the names that it may read.
        instead: what to do then, as the message says.
    """
    unknown = [name for name in names_read(kind) if name not in known]
    if unknown:
        raise ValueError(
            f"{kind.__name__}.forward of transformers {transformers.__version__} reads "
            f"{', '.join(unknown)}, which lrk does not know: {instead}"
        )


def hands_on(kind: type[Any], argument: str) -> bool:
    """Whether the forward of a class hands an argument on to what it calls.

    One that it does not name is among those that it hands on as they are; one that it names it must
    name again in a call, where its name is a constant.
    """
    forward = stock_forward(kind)
    named = inspect.signature(forward).parameters
    again = [each for each in forward.__code__.co_consts if isinstance(each, tuple)]
    return argument not in named or any(argument in each for each in again)


def global_of(kind: type[Any], name: str) -> Any:
    """What a name means inside the forward of a class.

    Raises:
        ValueError: if the forward does not use it.
    """
    forward = stock_forward(kind)
    if name not in names_read(kind) or name not in forward.__globals__:
        raise ValueError(
            f"{kind.__name__}.forward of transformers {transformers.__version__} does not call "
            f"{name}, which lrk would replace: {INSTALL}"
        )
    return forward.__globals__[name]


def rebound(kind: type[Any], **replaced: Callable[..., Any]) -> FunctionType:
    """The forward of a class, without decorators, in which some globals mean something else.

    The class and its module keep theirs. The globals have no `__name__`: by it torch.compile would
    look them up in the module.

    Raises:
        ValueError: for a global that the forward does not use.
    """
    for name in replaced:
        global_of(kind, name)
    forward = stock_forward(kind)
    scope = {**forward.__globals__, **replaced}
    del scope["__name__"]
    copied = FunctionType(
        forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied
