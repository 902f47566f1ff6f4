"""Other implementations of our operations, under one signature each.

A provider is made for a shape before it is called, and says by `Unavailable` why it cannot be: not
installed, no GPU, no documents. Nothing is put in its place.
"""

from importlib.util import find_spec

import torch

from lrk.versions import pip_install


class Unavailable(Exception):
    """A provider cannot run here; the sentence says why."""


def need_package(module: str, name: str) -> None:
    """Raise `Unavailable` unless a package is installed."""
    if find_spec(module) is None:
        raise Unavailable(f"{name} is not installed: {pip_install(name)}")


def need_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        raise Unavailable(f"{name} needs a GPU")
