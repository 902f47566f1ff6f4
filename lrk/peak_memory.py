"""How much memory a process has needed."""

import resource
import sys

import torch


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far: allocated tensors on a GPU, resident pages of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
