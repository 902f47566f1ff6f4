"""Random cases of attention, and the check that every implementation has to pass."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lrk.kernels.attention import attention_reference
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as


class Case(NamedTuple):
    """Inputs of one call, and gradients that come back to it."""

    q: Tensor
    k: Tensor
    v: Tensor
    arguments: dict[str, Any]
    grad_out: Tensor
    grad_lse: Tensor

    def to(self, device: torch.device) -> "Case":
        def move(x: Any) -> Any:
            return x.to(device) if isinstance(x, Tensor) else x

        arguments = {name: move(x) for name, x in self.arguments.items()}
        return Case(*map(move, self[:3]), arguments, *map(move, self[4:]))


def random_case(seed: int, max_length: int = 260) -> Case:
    """Shapes, strides, dtype, documents, offsets, window, softcap and scale drawn from a seed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    batch, kv_heads = draw.choice([(1, 1), (1, 2), (2, 1), (3, 1)])
    heads = kv_heads * draw.choice([1, 1, 2, 3, 7 if batch == 1 else 4])
    head_dim = draw.choice([64, 128, 80, 96, 40])
    dtype = draw.choice([torch.float16, torch.bfloat16, torch.float32])
    q_length = draw.choice([5, 33, 64, 100, 257])
    k_length = draw.choice([q_length, q_length, 7, 130, 260])
    q_length, k_length = min(q_length, max_length), min(k_length, max_length)

    arguments: dict[str, Any] = {"causal": draw.random() < 0.75}
    kind = draw.choice(["rows", "documents", "documents", "kv_lengths", "q_offset", "q_offsets"])
    if kind == "documents":
        documents = draw.choice([1, 2, 3, 5])
        arguments["cu_seqlens"] = _document_ends(draw, batch, q_length, documents)
        if q_length != k_length or draw.random() < 0.4:
            arguments["cu_seqlens_k"] = _document_ends(draw, batch, k_length, documents)
    elif kind == "kv_lengths":
        arguments["kv_lengths"] = torch.tensor([draw.randint(0, k_length) for _ in range(batch)])
    elif kind == "q_offset":
        arguments["q_offset"] = draw.randint(-5, k_length)
    elif kind == "q_offsets":
        offsets = torch.tensor([draw.randint(-5, k_length) for _ in range(batch)])
        arguments["q_offset"] = draw.choice([offsets.int(), offsets[0]])
    if arguments["causal"] and draw.random() < 0.5:
        arguments["window"] = draw.choice([1, 3, 40, 100, 1000])
        beyond = kind == "q_offset" and arguments["q_offset"] + q_length > k_length
        if draw.random() < 0.5 and not beyond:
            steps = torch.randint(1, 6, (draw.choice([1, batch]), k_length))
            arguments["window_position_ids"] = steps.cumsum(-1)
    if draw.random() < 0.25:
        arguments["softcap"] = draw.choice([1.0, 5.0, 30.0])
    if draw.random() < 0.25:
        arguments["scale"] = 0.3

    q = _tensor(draw, batch, heads, q_length, head_dim).to(dtype)
    k, v = (_tensor(draw, batch, kv_heads, k_length, head_dim).to(dtype) for _ in range(2))
    grad_out = _tensor(draw, batch, heads, q_length, head_dim).to(dtype)
    grad_lse = torch.randn(batch, heads, q_length) * draw.choice([0.0, 1.0])
    return Case(q, k, v, arguments, grad_out, grad_lse)


def _document_ends(draw: random.Random, batch: int, length: int, documents: int) -> Tensor:
    ends = [0]
    for row in range(batch):
        inner = sorted(draw.randint(0, length) for _ in range(documents - 1))
        ends += [row * length + end for end in (*inner, length)]
    return torch.tensor(ends, dtype=draw.choice([torch.int32, torch.int64]))


def _tensor(draw: random.Random, batch: int, heads: int, length: int, head_dim: int) -> Tensor:
    """(batch, heads, length, head_dim) in one of the layouts that models produce, or an odd one."""
    layout = draw.choice(["b h s d", "b s h d", "s b h d", "padded", "transposed"])
    if layout == "b h s d":
        return torch.randn(batch, heads, length, head_dim)
    if layout == "b s h d":
        return torch.randn(batch, length, heads, head_dim).transpose(1, 2)
    if layout == "s b h d":
        return torch.randn(length, batch, heads, head_dim).permute(1, 2, 0, 3)
    if layout == "padded":
        return torch.randn(batch, heads + 1, length + 3, head_dim + 5)[:, 1:, 2:-1, 3:-2]
    return torch.randn(batch, heads, head_dim, length).mT


Attention = Callable[..., tuple[Tensor, Tensor]]


def outputs_and_gradients(attention: Attention, case: Case) -> dict[str, Tensor]:
    """out, lse where some key is visible, and the gradients of q, k, v."""
    inputs = [x.detach().requires_grad_() for x in case[:3]]
    out, lse = attention(*inputs, **case.arguments, return_lse=True)
    has_keys = torch.isfinite(lse)
    gradients = torch.autograd.grad(
        [out, torch.where(has_keys, lse, 0.0)],
        inputs,
        [case.grad_out.to(out.dtype), case.grad_lse.to(lse.dtype)],
    )
    names = ("dq", "dk", "dv")
    return {"out": out, "lse": lse[has_keys], **dict(zip(names, gradients, strict=True))}


def sdpa_with_reference_lse(
    q: Tensor, k: Tensor, v: Tensor, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """PyTorch's own attention, given the reference's mask; without softcap."""
    out, lse = attention_reference(q, k, v, **arguments)
    if arguments.get("softcap") is not None:
        return out, lse
    with torch.no_grad():
        # Values that name their key, times its weight, show which keys are visible.
        batch, _, k_length, _ = k.shape
        names = torch.eye(k_length, dtype=torch.float64).expand(batch, 1, -1, -1)
        zeros = names.new_zeros(batch, 1, q.shape[2], k_length)
        plain = {name: x for name, x in arguments.items() if name != "scale"}
        weights, _ = attention_reference(zeros, torch.zeros_like(names), names, **plain)
    scale = arguments.get("scale")
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=weights > 0, scale=scale, enable_gqa=True
    )
    return out, lse


def assert_exact(attention: Attention, case: Case, plain: Attention = attention_reference) -> None:
    """Outputs and gradients obey the tolerance rule, with `plain` as plain PyTorch."""
    exact = Case(
        *(x.double() for x in case[:3]), case.arguments, case.grad_out.double(), case.grad_lse
    )
    ours = outputs_and_gradients(attention, case)
    rounded = outputs_and_gradients(plain, case)
    truth = outputs_and_gradients(attention_reference, exact)
    for name, value in ours.items():
        factor = OUTPUT_FACTOR if name in ("out", "lse") else GRADIENT_FACTOR
        assert not value.isnan().any(), f"{name} has NaN"
        assert_as_exact_as(value, rounded[name], truth[name], factor, name)


@pytest.fixture
def case_of() -> Callable[..., Case]:
    return random_case


@pytest.fixture
def check() -> Callable[..., None]:
    return assert_exact


@pytest.fixture
def evaluate() -> Callable[..., dict[str, Tensor]]:
    return outputs_and_gradients


@pytest.fixture
def sdpa() -> Attention:
    return sdpa_with_reference_lse
