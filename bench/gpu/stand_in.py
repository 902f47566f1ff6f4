"""`torch.cuda` on a machine without a GPU, for rehearsals: every line that a GPU runs, runs.

Times are the clock's and memory is the resident set of the process, so no figure made under it says
anything about a GPU; what is written then bears the name `CARD`.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD = "rehearsal on a CPU"
_PAGE = resource.getpagesize()


class Event:
    """The moment at which it was recorded: work on a CPU is done when its call returns."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.seconds - self.seconds)


class Stream:
    """Work on a CPU is in order already."""

    def wait_stream(self, other: "Stream") -> None:
        pass


class Graph:
    """Keeps the operations of a capture and repeats them into the tensors that it gave out."""

    def __init__(self) -> None:
        self.tape: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @contextmanager
    def capturing(self) -> Iterator[None]:
        tape = self.tape

        class Recording(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                tape.append((func, args, kwargs or {}, result))
                return result

        with Recording():
            yield

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, before in self.tape:
            after = func(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def resident_bytes(*_: Any) -> int:
    """Memory that the process holds now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE


def most_resident_bytes(*_: Any) -> int:
    """Most memory that the process has held since it began; nothing resets it."""
    return max(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resident_bytes())


def _properties(*_: Any) -> SimpleNamespace:
    return SimpleNamespace(L2_cache_size=1024, multi_processor_count=1, total_memory=1 << 30)


_FUNCTIONS: dict[str, Any] = {
    "Event": Event,
    "Stream": Stream,
    "CUDAGraph": Graph,
    "graph": Graph.capturing,
    "stream": lambda stream: nullcontext(),
    "current_stream": Stream,
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
    "memory_allocated": resident_bytes,
    "max_memory_allocated": most_resident_bytes,
    "reset_peak_memory_stats": lambda *_: None,
    "get_device_name": lambda *_: CARD,
    "get_device_capability": lambda *_: (9, 0),
    "get_device_properties": _properties,
    "_sleep": lambda cycles: None,
}


@contextmanager
def stand_in() -> Iterator[None]:
    """Within the block `torch.cuda` is this module's; `torch.compile` compiles nothing."""
    with ExitStack() as stack:
        for name, function in _FUNCTIONS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(torch, "compile", _not_compiled))
        yield


def _not_compiled(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda each: each
