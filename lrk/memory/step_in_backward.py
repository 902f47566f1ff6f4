"""The optimizer's step inside the backward pass, so that gradients are never all there at once.

As soon as a parameter has its gradient it is updated, and the gradient freed: LOMO (2306.09782) for
any optimizer that treats each parameter by itself. It rules out what needs all gradients of a step
together: accumulation, and clipping by their norm.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class StepInBackward:
    """Makes an optimizer step by backward passes alone, until `remove`.

    The optimizer itself stays what it is, with its groups, learning rates and state; to step it
    once more is harmless, as it has no gradients left. In the order of the backward pass a
    parameter is updated after its last use, or autograd raises.

    Args:
        optimizer: of parameters that have no gradients yet.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._norms: list[Tensor] = []
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._step)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]

    def _step(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        self._norms.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
        self._optimizer.step()  # leaves out the parameters without gradients, which is all others
        parameter.grad = None

    def take_norm(self) -> Tensor:
        """Norm of the gradients since it was last taken, 0-dimensional float32; 0 if none."""
        norms, self._norms = self._norms, []
        return torch.stack(norms).norm() if norms else torch.zeros(())

    def remove(self) -> None:
        """Leave gradients alone from now on."""
        for handle in self._handles:
            handle.remove()
