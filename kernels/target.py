"""Where a Triton launcher runs: a CUDA or ROCm device, or the interpreter on CPU tensors."""

import functools

import torch
import triton
from torch import Tensor

from .interpreter import mend_interpreter


def interpreting() -> bool:
    """Whether Triton was told to interpret kernels (`TRITON_INTERPRET=1` before its import)."""
    return triton.knobs.runtime.interpret


def require_launchable(name: str, tensor: Tensor) -> None:
    """Raise `ValueError` where a Triton kernel cannot run on the device of `tensor`."""
    if tensor.is_cuda:
        return
    if tensor.device.type == "cpu" and interpreting():
        mend_interpreter()
        return
    raise ValueError(
        f"{name} is on device {tensor.device}: Triton kernels need a GPU tensor, or a CPU tensor "
        "with TRITON_INTERPRET=1 set before triton is imported"
    )


INTERPRETED = "sm_90"
"""The architecture whose tiles the interpreter runs."""


@functools.cache
def _architecture_of(index: int) -> str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def architecture(tensor: Tensor) -> str:
    """Key of the tables of tiles: `"sm_90"`, `"gfx942"`, ...; `INTERPRETED` for CPU tensors."""
    return _architecture_of(tensor.device.index) if tensor.is_cuda else INTERPRETED


@functools.cache
def _multiprocessors_of(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(tensor: Tensor) -> int:
    """How many the GPU of `tensor` has (AMD: compute units); an H100's for CPU tensors."""
    return _multiprocessors_of(tensor.device.index) if tensor.is_cuda else 132
