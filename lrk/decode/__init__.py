"""Decoding methods that need no training: context managers over a patched model.

with lrk.decode.self_extend(model, window=1024, group=8):
    model.generate(...)
"""

from lrk.decode.contrast import pcd
from lrk.decode.mapped import dca, self_extend, string

__all__ = ["dca", "pcd", "self_extend", "string"]
