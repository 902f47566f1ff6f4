"""One case of the loss: its inputs, and everything it returns and every gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lrk.kernels.cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_cross_entropy_triton,
)
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as


@dataclass
class Case:
    """Inputs in the precision under test, and options of the loss."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor | None
    token_weight: Tensor | None
    options: dict[str, Any]

    def check(self, function: Callable) -> dict[str, Tensor]:
        """Assert the tolerance rule for every output and gradient; returns those of `function`."""
        dtype = self.hidden.dtype
        truth = self.evaluate(linear_cross_entropy_reference, torch.float64)
        plain = self.evaluate(linear_cross_entropy_reference, dtype)
        ours = self.evaluate(function, dtype)
        assert ours.keys() == truth.keys()
        for name, value in ours.items():
            factor = GRADIENT_FACTOR if name.startswith("gradient") else OUTPUT_FACTOR
            if value.dim():
                assert_as_exact_as(value, plain[name], truth[name], factor, name)
            else:
                # Plain PyTorch gets one number right by luck; test_grid.py judges many together.
                torch.testing.assert_close(value.double(), truth[name], rtol=5e-7, atol=0)
        return ours

    def loss(self, function: Callable, dtype: torch.dtype) -> Tensor:
        tensors = {
            name: tensor.to(dtype)
            for name in ("hidden", "weight", "bias", "token_weight")
            if (tensor := getattr(self, name)) is not None
        }
        with torch.no_grad():
            return function(labels=self.labels, **tensors, **self.options)

    def evaluate(self, function: Callable, dtype: torch.dtype) -> dict[str, Tensor]:
        """Loss, lse and all gradients of `function`, with the inputs cast to `dtype`.

        Outputs that are not scalars are pulled by fixed numbers, different for each token.
        """
        leaves = {
            name: tensor.detach().to(dtype).requires_grad_()
            for name in ("hidden", "weight", "bias", "token_weight")
            if (tensor := getattr(self, name)) is not None
        }
        outputs = function(labels=self.labels, **leaves, **self.options)
        named = {"loss": outputs}
        if self.options.get("return_lse"):
            named = dict(zip(("loss", "lse"), outputs, strict=True))
        pulled = sum(
            (output * torch.linspace(-0.5, 1.5, output.numel(), device=output.device)
             .to(output.dtype).view(output.shape)).sum() if output.dim() else output
            for output in named.values()
        )  # fmt: skip
        pulled.backward()
        gradients = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
        return {name: tensor.detach() for name, tensor in named.items()} | gradients


@pytest.fixture
def make_case(device: torch.device) -> Callable[..., Case]:
    """Random inputs; a fifth of the labels is ignored."""

    def make(
        shape: tuple[int, ...] = (2, 15),
        vocab: int = 101,
        width: int = 37,
        dtype: torch.dtype = torch.float32,
        with_bias: bool = False,
        with_token_weight: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        labels = torch.randint(0, vocab, shape, generator=generator)
        ignore_index = options.get("ignore_index", -100)
        if ignore_index is not None:
            labels[torch.rand(shape, generator=generator) < 0.2] = ignore_index
        return Case(
            hidden=normal(*shape, width).to(device, dtype),
            weight=(3 * normal(vocab, width) / width**0.5).to(device, dtype),
            labels=labels.to(device),
            bias=normal(vocab).to(device, dtype) if with_bias else None,
            token_weight=(
                (2 * torch.rand(shape, generator=generator)).to(device, dtype)
                if with_token_weight
                else None
            ),
            options=options,
        )

    return make


@pytest.fixture(params=["dispatched", "triton"])
def function(request: pytest.FixtureRequest) -> Callable:
    """The public function, and the Triton kernels (in the interpreter where there is no GPU)."""
    return {"dispatched": linear_cross_entropy, "triton": linear_cross_entropy_triton}[
        request.param
    ]
