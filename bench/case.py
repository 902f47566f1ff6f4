"""What the compile report needs to know of a kernel that it cannot read from machine code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench.machine_code import MachineCode
from bench.offline import Launch


class Model(NamedTuple):
    """The sizes of a model that kernels see."""

    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    dtype: torch.dtype = torch.bfloat16


MODELS = {
    "llama-3-8b": Model(4096, 32, 8, 128, 128_256),
    "mistral-7b": Model(4096, 32, 8, 128, 32_768),
    "qwen2-7b": Model(3584, 28, 4, 128, 152_064),
    "smollm2-135m": Model(576, 9, 3, 64, 49_152),
}


@dataclass(frozen=True)
class Case:
    """One launcher on tensors of a model's shape. Every kernel it launches becomes a row.

    Callables get the launch, since the launcher chooses its tiles by the architecture.
    """

    op: str
    provider: str
    model: str
    dtype: torch.dtype
    head_dim: int | None
    launch: Callable[[], object]
    """Calls the launcher on CPU tensors, of this library or a peer's."""
    tile: Callable[[Launch], str]
    trips: Callable[[Launch], tuple[int, ...]] | None = None
    """Trips of each loop, in order of address: what `instructions_per_element` needs."""
    elements: int | None = None
    """Elements of output that the launch computes."""
    minimum_bytes: int | None = None
    """Of global memory that any implementation must move: inputs once, outputs once."""
    traffic: Callable[[Launch, MachineCode], int] | None = None
    """Bytes of distinct global memory that the launch moves."""
