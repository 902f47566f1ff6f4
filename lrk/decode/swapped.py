"""Other classes for the modules of a patched model, for the length of a block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lrk.hf.mixed import become, mixed, stock_class


@contextmanager
def swapped(modules: Sequence[nn.Module], mixin: Any, **attributes: Any) -> Iterator[None]:
    """The modules are of the class `mixin` over their stock class, and have these attributes.

    Args:
        modules: they get their class back after the block, unless `unpatch` was called in it.
        mixin: as of `lrk.hf.mixed.mixed`.
        attributes: their names begin with `_lrk_`, so that `unpatch` removes them.

    Raises:
        ValueError: if the modules have that class already, or their stock class is not as the
            mixin expects it.
    """
    if any(isinstance(module, mixin) for module in modules):
        raise ValueError("model is in a block of the same kind already: leave that before")
    before = [type(module) for module in modules]
    after = [mixed(mixin, stock_class(kind)) for kind in before]
    for module, kind in zip(modules, after, strict=True):
        become(module, kind)
        vars(module).update(attributes)
    try:
        yield
    finally:
        for module, kind in zip(modules, before, strict=True):
            if isinstance(module, mixin):
                for name in attributes:
                    del vars(module)[name]
                become(module, kind)
