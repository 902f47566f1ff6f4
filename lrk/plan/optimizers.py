"""Optimizers as transformers' trainer makes them; the state of those that refuse fake tensors."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lrk.memory.host_optimizer import HostOptimizer
from lrk.plan.settings import LOW_BIT

# torchao and bitsandbytes: smaller tensors keep moments in their own dtype.
SMALLEST_QUANTISED = 4096


def make_optimizer(optim: str, parameters: Sequence[nn.Parameter], on_gpu: bool) -> Optimizer:
    """One that runs on fake tensors; `foreach` is what PyTorch takes by itself on a GPU only."""
    foreach = True if on_gpu else None
    if optim == "adamw_torch_fused":
        return AdamW(parameters, fused=True)
    if optim == "adamw_torch":
        return AdamW(parameters, foreach=foreach)
    if optim == "sgd":
        return SGD(parameters, lr=1e-3, foreach=foreach)
    assert optim == "adafactor"
    from transformers.optimization import Adafactor  # which brings peft

    return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)


def make_states(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Let an optimizer make its state, by steps whose gradients do not matter.

    One parameter at a time, so that making the state needs less memory than what it is made for.

    Returns:
        The state, and what a `HostOptimizer` has beside it.
    """
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        parameter.grad = None
    if isinstance(optimizer, HostOptimizer):
        buffers = [buffer for pair in optimizer.buffers.values() for buffer in pair]
        return [*optimizer.host_state, *buffers]
    states = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in states if isinstance(value, Tensor)]


def low_bit_states(optim: str, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor]:
    """Tensors of the size of torchao's states: codes, and a float32 scale for each block of them.

    AdamW8bit has blocks of 256 elements, AdamW4bit of 128. Each of the two moments also has its
    table of codes.
    """
    bytes_of_code = LOW_BIT[optim]
    block = 256 if bytes_of_code == 1 else 128
    for parameter in parameters:
        elements = parameter.numel()
        for _ in range(2):
            if elements < SMALLEST_QUANTISED or elements % block:
                yield torch.empty_like(parameter)
                continue
            yield torch.empty(math.ceil(elements * bytes_of_code), dtype=torch.uint8)
            yield torch.empty(elements // block)
            yield torch.empty(round(256**bytes_of_code))


def _hold_thrice(parameter: Tensor) -> None:
    _ = [torch.empty(parameter.numel()) for _ in range(3)]


class LowBit(Optimizer):
    """What a low-bit step is assumed to need: both moments and the update of a parameter.

    In float32. torchao compiles the update of each parameter, which can only need less. The state
    is that of `low_bit_states`, beside it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _hold_thrice(parameter)
