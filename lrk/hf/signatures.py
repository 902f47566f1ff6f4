"""Whether the installed transformers calls its forwards as lrk's expect to be called.

A forward of transformers takes more arguments than it names, and hands them on. So one that a new
release has renamed would be taken for such an extra by lrk's forward, and be lost without a word:
the cache was, in 5.24.
"""

import inspect
from collections.abc import Collection
from typing import Any

import transformers

from lrk.hf.stock_forward import INSTALL


def check_signature(stock: type[Any], mixin: type[Any], may_lack: Collection[str] = ()) -> None:
    """Raise `ValueError` if a stock forward names other arguments than the one that replaces it.

    Args:
        stock: a class of transformers.
        mixin: what `lrk.hf.mixed.mixed` puts in front of it. Its positional arguments are the stock
            ones in their order; what only lrk's forward takes, or only that of some stock classes,
            is keyword-only there.
        may_lack: positional arguments that some stock classes have.
    """
    ours, ours_only = _named(mixin)
    theirs = [name for name in _named(stock)[0] if name not in ours_only]
    unknown = [name for name in theirs if name not in ours]
    missing = [name for name in ours if name not in (*theirs, *may_lack)]
    if not unknown and not missing and theirs == [name for name in ours if name in theirs]:
        return
    differs = (
        f"takes {', '.join(unknown)}, which lrk does not know"
        if unknown
        else f"does not take {', '.join(missing)}"
        if missing
        else f"takes its arguments in the order {', '.join(theirs)}"
    )
    raise ValueError(
        f"{stock.__name__}.forward of transformers {transformers.__version__} {differs}: {INSTALL}"
    )


def _named(kind: type[Any]) -> tuple[list[str], list[str]]:
    """The arguments of a forward that may be given by their place, and those by name alone."""
    parameters = inspect.signature(kind.forward).parameters.values()
    return (
        [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD],
        [each.name for each in parameters if each.kind is each.KEYWORD_ONLY],
    )
