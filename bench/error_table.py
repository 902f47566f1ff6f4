"""Errors of every operation against float64, beside plain PyTorch in the same dtype.

    python -m bench.error_table

Prints a Markdown table: the largest absolute error of the outputs and of the gradients. The Triton
kernels run on a GPU if there is one, else in the interpreter.
"""

import argparse
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from lrk.kernels.attention import attention, attention_reference, attention_triton
from lrk.kernels.cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_cross_entropy_triton,
)
from lrk.kernels.rope import rope, rope_reference, rope_triton
from lrk.testing import max_error

Implementation = Callable[..., tuple[Tensor, ...]]


class Case(NamedTuple):
    """An operation on float64 tensors that all need gradients, in four implementations."""

    name: str
    tensors: list[Tensor]
    truth: Implementation
    plain: Implementation
    cpu: Implementation
    triton: Implementation


def rope_case(generator: torch.Generator) -> Case:
    """Llama's RoPE at 64 of the positions below 131,072."""
    head_dim = 64
    positions = torch.randperm(131_072, generator=generator)[None, :64].sort().values
    inv_freq = 5e5 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    def plain(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """As transformers: float32 angles, cosine and sine in the dtype of the activations."""
        angles = positions[..., None].float() * inv_freq.float()
        angles = torch.cat([angles, angles], dim=-1)[:, None].to(q.device)
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)

        def rotated(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-second, first], dim=-1) * sin

        return rotated(q), rotated(k)

    def of(implementation: Callable[..., tuple[Tensor, Tensor]]) -> Implementation:
        return lambda q, k: implementation(q, k, positions.to(q.device), inv_freq.to(q.device))

    shapes = [(1, 9, 64, head_dim), (1, 3, 64, head_dim)]
    tensors = [_normal(shape, generator) for shape in shapes]
    return Case("rope", tensors, of(rope_reference), plain, of(rope), of(rope_triton))


def attention_case(generator: torch.Generator) -> Case:
    """Causal grouped-query attention over 150 tokens."""

    def plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Softmax of scores in the dtype of the inputs."""
        k, v = (x.repeat_interleave(3, dim=1) for x in (k, v))
        hidden = torch.ones(150, 150, dtype=torch.bool, device=q.device).triu(1)
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
        return (functional.softmax(scores, dim=-1) @ v,)

    def of(implementation: Callable[..., Tensor]) -> Implementation:
        return lambda q, k, v: (implementation(q, k, v),)

    shapes = [(1, 9, 150, 64), (1, 3, 150, 64), (1, 3, 150, 64)]
    tensors = [_normal(shape, generator) for shape in shapes]
    return Case(
        "attention", tensors, of(attention_reference), plain, of(attention), of(attention_triton)
    )


def cross_entropy_case(generator: torch.Generator) -> Case:
    """252 tokens, hidden size 123, 507 entries in the vocabulary."""
    labels = torch.randint(507, (252,), generator=generator)
    labels[::7] = -100

    def plain(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (functional.cross_entropy(hidden @ weight.T, labels.to(hidden.device)),)

    def of(implementation: Callable[..., Tensor]) -> Implementation:
        return lambda hidden, weight: (implementation(hidden, weight, labels.to(hidden.device)),)

    tensors = [_normal((252, 123), generator), _normal((507, 123), generator) / 4]
    return Case(
        "linear_cross_entropy",
        tensors,
        of(linear_cross_entropy_reference),
        plain,
        of(linear_cross_entropy),
        of(linear_cross_entropy_triton),
    )


def results(implementation: Implementation, tensors: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Outputs, and the gradients of all inputs for upstream gradients that are the same for all."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = implementation(*leaves)
    generator = torch.Generator().manual_seed(1)
    upstream = [_normal(x.shape, generator).to(x.dtype).to(x.device) for x in outputs]
    return list(outputs), list(torch.autograd.grad(outputs, leaves, upstream))


def rows(case: Case, dtype: torch.dtype) -> list[str]:
    """Two rows: outputs and gradients."""
    rounded = [tensor.to(dtype) for tensor in case.tensors]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    truth = results(case.truth, [tensor.double() for tensor in rounded])
    ours = [
        results(case.plain, rounded),
        results(case.cpu, rounded),
        results(case.triton, [tensor.to(device) for tensor in rounded]),
    ]
    lines = []
    for i, quantity in enumerate(("outputs", "gradients")):
        errors = [
            max(max_error(x.cpu(), y) for x, y in zip(result[i], truth[i], strict=True))
            for result in ours
        ]
        cells = " | ".join(f"{error:.1e}" for error in errors)
        lines.append(f"| `{case.name}` | {quantity} | {str(dtype)[6:]} | {cells} |")
    return lines


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def main() -> None:
    print("| operation | largest error of | dtype | plain PyTorch | lrk, CPU | lrk, Triton |")
    print("|---|---|---|---|---|---|")
    for make in (rope_case, attention_case, cross_entropy_case):
        case = make(torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            print("\n".join(rows(case, dtype)))


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m bench.error_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    main()
