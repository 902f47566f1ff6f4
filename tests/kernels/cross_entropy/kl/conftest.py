"""One case of the divergence: its inputs, and what it returns and every gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lrk.kernels.cross_entropy import linear_kl, linear_kl_reference, linear_kl_triton
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as

STUDENT = ("hidden", "weight", "bias", "token_weight")
TEACHER = ("teacher_hidden", "teacher_weight", "teacher_bias")


@dataclass
class Case:
    """Tensors by their names, labels, and options."""

    tensors: dict[str, Tensor]
    labels: Tensor | None
    options: dict[str, Any]

    def evaluate(self, function: Callable, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Loss and gradients, with the inputs cast to `dtype`.

        A loss of each token is pulled by fixed numbers, different for each.
        """
        given = {name: x.detach().to(dtype or x.dtype) for name, x in self.tensors.items()}
        leaves = {name: x.requires_grad_() for name, x in given.items() if name in STUDENT}
        loss = function(labels=self.labels, **given, **self.options)
        pull = torch.ones_like(loss)
        if loss.dim():
            pull = torch.linspace(-0.5, 1.5, loss.numel(), device=loss.device).view(loss.shape)
        loss.backward(pull.to(loss.dtype))
        gradients = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
        return {"loss": loss.detach()} | gradients

    def check(self, function: Callable) -> dict[str, Tensor]:
        """Assert the tolerance rule for loss and gradients; returns those of `function`."""
        truth = self.evaluate(linear_kl_reference, torch.float64)
        plain, ours = (self.evaluate(each) for each in (linear_kl_reference, function))
        assert ours.keys() == truth.keys()
        for name, value in ours.items():
            factor = GRADIENT_FACTOR if name.startswith("gradient") else OUTPUT_FACTOR
            if value.dim():
                assert_as_exact_as(value, plain[name], truth[name], factor, name)
            else:
                # Plain PyTorch gets one number right by luck.
                torch.testing.assert_close(value.double(), truth[name], rtol=1e-6, atol=1e-12)
        return ours


@pytest.fixture
def make_case(device: torch.device) -> Callable[..., Case]:
    """Random inputs; a fifth of the labels is ignored.

    Args of the function:
        teacher_width: hidden size of the teacher.
        apart: how far the teacher's hidden states and weight are from the student's, where both
            have one width; None: they have nothing in common.
    """

    def make(
        shape: tuple[int, ...] = (2, 15),
        vocab: int = 101,
        width: int = 37,
        teacher_width: int = 29,
        dtype: torch.dtype = torch.float32,
        teacher_dtype: torch.dtype | None = None,
        with_bias: bool = False,
        with_teacher_bias: bool = False,
        with_token_weight: bool = False,
        with_labels: bool = True,
        apart: float | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        hidden, weight = normal(*shape, width), 3 * normal(vocab, width) / width**0.5
        teacher_hidden = normal(*shape, teacher_width)
        teacher_weight = 3 * normal(vocab, teacher_width) / teacher_width**0.5
        if apart is not None:
            teacher_hidden = hidden + apart * normal(*shape, width)
            teacher_weight = weight + apart * normal(vocab, width)
        tensors = {"hidden": hidden, "weight": weight}
        tensors |= {"teacher_hidden": teacher_hidden, "teacher_weight": teacher_weight}
        if with_bias:
            tensors["bias"] = normal(vocab)
        if with_teacher_bias:
            tensors["teacher_bias"] = normal(vocab)
        if with_token_weight:
            tensors["token_weight"] = 2 * torch.rand(shape, generator=generator)
        labels = torch.randint(0, vocab, shape, generator=generator)
        ignore_index = options.get("ignore_index", -100)
        if ignore_index is not None:
            labels[torch.rand(shape, generator=generator) < 0.2] = ignore_index
        return Case(
            {
                name: x.to(device, teacher_dtype or dtype if name in TEACHER else dtype)
                for name, x in tensors.items()
            },
            labels.to(device) if with_labels else None,
            options,
        )

    return make


@pytest.fixture(params=["dispatched", "triton"])
def function(request: pytest.FixtureRequest) -> Callable:
    """The public function, and the Triton kernels (in the interpreter where there is no GPU)."""
    return {"dispatched": linear_kl, "triton": linear_kl_triton}[request.param]
