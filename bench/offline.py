"""Compile Triton kernels for a GPU that is not there, exactly as a launch on it would.

Triton asks its active driver which GPU it compiles for. Given a driver that only names one, an
ordinary call of an operation's launcher - ours or a peer's - compiles the very specialisation that
it would launch, and launches nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from lrk.kernels import target

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def target_of(arch: str) -> GPUTarget:
    """The target of an architecture as lrk.kernels.target names it, in TARGETS or not."""
    if arch in TARGETS:
        return TARGETS[arch]
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


@dataclass(frozen=True)
class Launch:
    """A launch that was compiled instead of run."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    compiled: Any  # triton.compiler.CompiledKernel

    @property
    def programs(self) -> int:
        count = 1
        for size in self.grid:
            count *= size
        return count


class _Driver:
    """Names a GPU. Each has its own device index, by which Triton caches what it compiles."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return target_of(self.arch)

    def get_current_device(self) -> int:
        return int("".join(filter(str.isdigit, self.arch)))

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled_launches(call: Callable[[], object], arch: str) -> list[Launch]:
    """What `call` launches, compiled for `arch`. Its tensors are CPU tensors."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("Triton interprets kernels in this process: unset TRITON_INTERPRET")
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        grid = grid(arguments) if callable(grid) else grid
        launches.append(Launch(self.fn.__name__, tuple(grid), arguments, compiled))
        return compiled

    with _active(_Driver(arch)), mock.patch.object(JITFunction, "run", compile_only):
        call()
    return launches


@contextmanager
def _active(offline: _Driver) -> Iterator[None]:
    # Our launchers take CPU tensors only where Triton interprets; kernels decorated before this
    # switch are compiled all the same.
    with (
        triton.knobs.runtime.scope(),
        mock.patch.object(driver, "_active", offline),
        mock.patch.object(target, "INTERPRETED", offline.arch),
    ):
        triton.knobs.runtime.interpret = True
        yield
