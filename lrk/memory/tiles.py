"""Functions of single tokens, computed along the sequence in tiles.

Norms and MLPs look at one token at a time, so a whole sequence of their inner activations never has
to be there: Llama's MLP makes four tensors that are 3.5 times as wide as its input. Here each tile
is computed, its inside forgotten, and computed again when the backward pass comes to it. This is
the sequence tiling of ALST (2506.13996).

Under activation checkpointing a layer is computed again anyway, and torch.utils.checkpoint stops as
soon as it has all that was saved. Therefore the input is saved by a node of its own, before the
first tile: the tiles then run twice, as often as without tiling, and not three times.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

TokenFunction = Callable[[Tensor], Tensor]


@torch.compiler.disable
def tiled(
    function: TokenFunction, x: Tensor, parameters: Sequence[nn.Parameter], tile_tokens: int
) -> Tensor:
    """`function(x)`, and its gradients, in the memory of one tile beside input and result.

    The gradients that the tiles give a parameter are summed in float32 (float64 for a float64
    parameter), and the sum is rounded. Dropout repeats. Differentiable once. torch.compile leaves
    it as it is, with a break of the graph.

    Args:
        function: from (1, T, H) to (1, T, H'), each token by itself.
        x: (B, S, H); its B * S tokens are cut into tiles.
        parameters: all that the function uses.
        tile_tokens: tokens of a tile; the last may be shorter.

    Returns:
        (B, S, H').
    """
    tokens = x.reshape(1, -1, x.shape[-1])
    if tokens.shape[1] <= tile_tokens:
        return function(x)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or bool(trained))
    if needs_gradient:
        # The node that saves must be part of the graph.
        tokens = tokens if tokens.requires_grad else tokens.detach().requires_grad_()
        tokens = _Saved.apply(tokens)
    y = _Tiled.apply(function, tile_tokens, tokens.grad_fn, tokens, *trained)
    return y.view(*x.shape[:-1], y.shape[-1])


class _Saved(torch.autograd.Function):
    """The identity, which keeps its argument in `saved_tensors` of its node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: TokenFunction,
        tile_tokens: int,
        saved: Any,
        x: Tensor,
        *parameters: nn.Parameter,
    ) -> Tensor:
        ctx.function, ctx.tile_tokens, ctx.saved = function, tile_tokens, saved
        # Not saved for backward: whatever is would have to be computed again first.
        ctx.parameters, ctx.versions = parameters, [each._version for each in parameters]
        ctx.surroundings = _Surroundings(x)
        y: Tensor | None = None
        for tile in _tiles(x, tile_tokens):
            result = function(x[:, tile])
            if y is None:
                y = result.new_empty(1, x.shape[1], result.shape[-1])
            y[:, tile] = result
            del result
        if torch.is_autocast_enabled(x.device.type):
            # Without a graph, casts of the weights were cached that know of no gradient.
            torch.clear_autocast_cache()
        assert y is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved.saved_tensors
        if ctx.versions != [each._version for each in ctx.parameters]:
            raise RuntimeError("a parameter of a tiled function changed before its backward pass")
        grad_x = torch.empty_like(x)
        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        gradients: list[Any]
        with ctx.surroundings.again():
            for tile in _tiles(x, ctx.tile_tokens):
                piece = x[:, tile].detach().requires_grad_()
                with torch.enable_grad():
                    result = ctx.function(piece)
                grad_x[:, tile], *gradients = torch.autograd.grad(
                    result, (piece, *ctx.parameters), grad_y[:, tile], allow_unused=True
                )
                _add(sums, gradients)
                del result, gradients
        for index, parameter in enumerate(ctx.parameters):
            total = sums[index]
            sums[index] = None if total is None else total.to(parameter.dtype)
        return None, None, None, grad_x, *sums


def _tiles(x: Tensor, tile_tokens: int) -> list[slice]:
    """Slices of the second dimension."""
    length = x.shape[1]
    return [slice(at, min(at + tile_tokens, length)) for at in range(0, length, tile_tokens)]


def _add(sums: list[Tensor | None], gradients: list[Any]) -> None:
    """Add the gradients of a tile; each is forgotten as soon as it is added."""
    for index, gradient in enumerate(gradients):
        gradients[index] = None
        if gradient is None:
            continue
        total = sums[index]
        if total is None:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            sums[index] = gradient.to(wide)
        else:
            total.add_(gradient)


class _Surroundings:
    """Autocast and the state of random numbers, as they were when this was made."""

    def __init__(self, x: Tensor) -> None:
        self.device_type = x.device.type
        self.autocasts = torch.is_autocast_enabled(self.device_type)
        self.autocast_dtype = torch.get_autocast_dtype(self.device_type)
        self.cpu_state = torch.get_rng_state()
        self.devices, self.device_states = get_device_states(x)

    @contextmanager
    def again(self) -> Iterator[None]:
        with (
            torch.random.fork_rng(self.devices, device_type=self.device_type),
            torch.autocast(self.device_type, self.autocast_dtype, self.autocasts),
        ):
            torch.set_rng_state(self.cpu_state)
            set_device_states(self.devices, self.device_states, device_type=self.device_type)
            yield
