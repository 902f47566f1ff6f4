"""An optimizer whose state lives in host memory, and whose arithmetic is the host's.

Adam's two moments take as much memory as weights and gradients together, for use once a step. The
idea is that of ZeRO-Offload (2101.06840). In torchao's CPUOffloadOptimizer gradients leave the
device before they can be clipped; here they leave when the step is taken.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class HostOptimizer(Optimizer):
    """Takes the steps of another optimizer on the host, one parameter at a time.

    Weight and gradient of a parameter visit the host and the weight goes back, with nothing beside
    it: 6 bytes a bf16 parameter over the bus, and the device waits. The host holds the state, in
    the dtype of the parameters, and two buffers of the size of the largest parameter.

    Args:
        optimizer: made for the parameters on their device, and not stepped yet. It treats each
            parameter by itself and runs on a CPU (AdamW, fused or not, SGD, Adafactor). It is taken
            over: its groups then hold stand-ins on the host.

    Raises:
        ValueError: for an optimizer that has state already.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if optimizer.state:
            raise ValueError(
                f"optimizer has the state of {len(optimizer.state)} parameters already; it must "
                "not have been stepped"
            )
        groups = [dict(group) for group in optimizer.param_groups]
        super().__init__(groups, dict(optimizer.defaults))
        self._inner = optimizer
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for group in optimizer.param_groups:
            here = [
                nn.Parameter(torch.empty(0, dtype=p.dtype, device="cpu")) for p in group["params"]
            ]
            self._pairs += zip(group["params"], here, strict=True)
            group["params"] = here
        self.buffers = _buffers([parameter for parameter, _ in self._pairs])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As the step of the optimizer that was taken over."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._hand_down_options()
        for parameter, here in self._pairs:
            if parameter.grad is None:
                continue
            weight, gradient = (
                buffer[: parameter.numel()].view(parameter.shape)
                for buffer in self.buffers[parameter.dtype]
            )
            here.data, here.grad = weight.copy_(parameter), gradient.copy_(parameter.grad)
            self._inner.step()  # leaves out the parameters without gradients, which is all others
            parameter.copy_(here)
            here.data, here.grad = here.new_empty(0), None
        return result

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer that was taken over, so either can load the other's."""
        self._hand_down_options()
        return self._inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the optimizer that was taken over; state comes to the host."""
        self._inner.load_state_dict(state_dict)
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            group.update({name: value for name, value in inner.items() if name != "params"})

    def _hand_down_options(self) -> None:
        """Schedules change the learning rate of these groups."""
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner.update({name: value for name, value in group.items() if name != "params"})

    @property
    def host_state(self) -> list[Tensor]:
        """Every tensor of the state."""
        values = (value for state in self._inner.state.values() for value in state.values())
        return [value for value in values if isinstance(value, Tensor)]


def _buffers(parameters: list[nn.Parameter]) -> dict[torch.dtype, tuple[Tensor, Tensor]]:
    """For each dtype two buffers as large as its largest parameter, pinned if it is a GPU's."""
    largest: dict[torch.dtype, nn.Parameter] = {}
    for parameter in parameters:
        known = largest.setdefault(parameter.dtype, parameter)
        if parameter.numel() > known.numel():
            largest[parameter.dtype] = parameter

    def buffer(parameter: nn.Parameter) -> Tensor:
        # On the host whatever the default device: only its memory can be pinned.
        return torch.empty(
            parameter.numel(),
            dtype=parameter.dtype,
            device="cpu",
            pin_memory=parameter.is_cuda,
        )

    return {dtype: (buffer(each), buffer(each)) for dtype, each in largest.items()}
