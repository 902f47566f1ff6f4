"""LongRoPE2's search (2502.20082, section 3.2): RoPE factors by the loss of long needle samples."""

from lrk.longrope.arguments import LongRopeArguments
from lrk.longrope.evolution import Evolution
from lrk.longrope.find import find_factors
from lrk.longrope.needles import NeedleSample
from lrk.longrope.search import Found, search_factors

__all__ = [
    "Evolution",
    "Found",
    "LongRopeArguments",
    "NeedleSample",
    "find_factors",
    "search_factors",
]
