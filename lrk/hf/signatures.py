"""Whether the installed transformers calls its forwards as lrk's expect to be called.

A forward of transformers takes more arguments than it names, and hands them on. So one that a new
release has renamed would be taken for such an extra by lrk's forward, and be lost without a word:
the cache was, in 5.24.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import transformers


def check_signatures(mixins: Mapping[type[Any], type[Any]]) -> None:
    """Raise `ValueError` if a stock forward names other arguments than the one that replaces it.

    Args:
        mixins: by stock class, what `lrk.hf.mixed.mixed` puts in front of it. What only lrk's
            forward takes is keyword-only there; the rest are the stock arguments in their order.
    """
    for stock, mixin in mixins.items():
        theirs, ours = _positional(stock), _positional(mixin)
        if theirs == ours:
            continue
        unknown = [name for name in theirs if name not in ours]
        missing = [name for name in ours if name not in theirs]
        differs = (
            f"takes {', '.join(unknown)}, which lrk does not know"
            if unknown
            else f"does not take {', '.join(missing)}"
            if missing
            else f"takes its arguments in the order {', '.join(theirs)}"
        )
        raise ValueError(
            f"{stock.__name__}.forward of transformers {transformers.__version__} {differs}: "
            "install a release of transformers that docs/support.md lists"
        )


def _positional(kind: type[Any]) -> list[str]:
    parameters = inspect.signature(kind.forward).parameters.values()
    return [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
