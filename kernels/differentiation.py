"""How the operations may be differentiated: by `torch.autograd` in reverse, where said so again.

PyTorch does not refuse the rest by itself: forward mode drops what an operation does not know, so
that `torch.func.jvp` would be 0.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad


def check_differentiation(operation: str, *tensors: Tensor | None) -> None:
    """Raise `NotImplementedError` for a tensor that PyTorch would differentiate in another way."""
    for x in tensors:
        if x is None:
            continue
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"{operation} has no derivative in forward mode (torch.func.jvp, jacfwd, hessian): "
                f"use torch.autograd.grad, or {operation}_reference"
            )
        # While torch.compile traces, that cannot be asked, and PyTorch refuses in words of its own.
        compiling = torch.compiler.is_dynamo_compiling()
        if x.requires_grad and not compiling and torch._C._functorch.is_gradtrackingtensor(x):
            raise NotImplementedError(
                f"{operation} has no derivative by torch.func (grad, vjp, jacrev): use "
                f"torch.autograd.grad, or {operation}_reference"
            )


def no_second_derivative(operation: str) -> Callable[..., NoReturn]:
    """The gradient of an operation's gradient, which nobody has derived."""

    def refuse(ctx: Any, *gradients: Tensor | None) -> NoReturn:
        raise NotImplementedError(
            f"{operation} cannot be differentiated twice (create_graph=True): use "
            f"{operation}_reference"
        )

    return refuse
