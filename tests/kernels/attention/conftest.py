"""Random cases of attention, and the check that every implementation has to pass."""

import functools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from lrk.kernels.attention import attention_reference
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as, max_error

LOG2_E = math.log2(math.e)

_ORDERS = 8


@pytest.fixture(scope="session", autouse=True)
def device_functions_are_cheap() -> Iterator[None]:
    """Keep the interpreter from patching triton.language anew for every call of a device function.

    It is patched already, by the kernel that calls; looking through it again took half the time.
    """
    stock = interpreter._patch_lang
    patched: dict[frozenset[str], Any] = {}

    class Scope(interpreter._LangPatchScope):
        def restore(self) -> None:
            while patched:
                patched.popitem()[1].restore()

    def patch_once(fn: Any) -> Any:
        modules = frozenset(x.__name__ for x in fn.__globals__.values() if x is tl or x is tl.core)
        if modules not in patched:
            patched[modules] = stock(fn)
        return Scope()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        yield


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
    batch, kv_heads, group = draw.choice(
        [(1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 7), (1, 2, 2), (2, 1, 1), (2, 2, 1), (3, 1, 1)]
    )
    heads = kv_heads * group
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
        lengths = [k_length, *(draw.randint(0, k_length) for _ in range(batch - 1))]
        arguments["kv_lengths"] = torch.tensor(lengths)
    elif kind == "q_offset":
        arguments["q_offset"] = draw.randint(-3, k_length)
    elif kind == "q_offsets":
        offsets = torch.tensor([draw.randint(-3, k_length) for _ in range(batch)])
        arguments["q_offset"] = draw.choice([offsets.int(), offsets[0]])
    if arguments["causal"] and draw.random() < 0.5:
        arguments["window"] = draw.choice([3, 40, 100, 1000])
        beyond = kind == "q_offset" and arguments["q_offset"] + q_length > k_length
        if draw.random() < 0.5 and not beyond:
            steps = torch.randint(1, 6, (draw.choice([1, batch]), k_length))
            arguments["window"] += 37  # several keys: a single one has an exactly zero gradient
            arguments["window_position_ids"] = steps.cumsum(-1)
    if draw.random() < 0.25:
        arguments["softcap"] = draw.choice([1.0, 5.0, 30.0])
    if draw.random() < 0.25:
        arguments["scale"] = 1.5 * head_dim**-0.5

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


class _PlainFlash(torch.autograd.Function):
    """The formulas of flash attention in plain PyTorch, all keys in one tile.

    In float32 their rounding counts, and autograd's formulas round elsewhere: flash attention
    exponentiates in base 2, divides by the mass last, recomputes the scores in its backward, takes
    `rowsum(dO * O)` for `rowsum(P * dP)`, and sums every product in an order of its own.
    """

    @staticmethod
    def forward(ctx, q, k, v, arguments, orders):
        ctx.arguments, ctx.orders, ctx.visible = arguments, orders, _visible(q, k, arguments)
        keys, values = _repeated(q, k), _repeated(q, v)
        scores, _ = _capped(_product(q, keys.mT, orders), q, arguments)
        scores = torch.where(ctx.visible, scores, float("-inf"))
        m = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        weights = torch.exp2(scores * LOG2_E - m * LOG2_E)
        mass = weights.sum(-1, keepdim=True)
        empty = mass == 0
        mass = mass.masked_fill(empty, 1.0)
        out = _product(weights, values, orders) / mass
        lse = (m + mass.log()).masked_fill(empty, float("-inf"))[..., 0]
        ctx.save_for_backward(q, k, v, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse = ctx.saved_tensors
        keys, values = _repeated(q, k), _repeated(q, v)
        scores, slope = _capped(_product(q, keys.mT, ctx.orders), q, ctx.arguments)
        lse = lse.nan_to_num(neginf=0.0)[..., None]
        weights = torch.where(ctx.visible, torch.exp2(scores * LOG2_E - lse * LOG2_E), 0.0)
        delta = (grad_out * out).sum(-1) - grad_lse
        grad_weights = _product(grad_out, values.mT, ctx.orders)
        scale = ctx.arguments.get("scale", q.shape[-1] ** -0.5)
        grad_scores = weights * (grad_weights - delta[..., None]) * slope * scale
        grad_q = _product(grad_scores, keys, ctx.orders)
        grad_k = _product(grad_scores.mT, q, ctx.orders)
        grad_v = _product(weights.mT, grad_out, ctx.orders)
        grad_k, grad_v = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (grad_k, grad_v))
        return grad_q, grad_k, grad_v, None, None


def _product(a: Tensor, b: Tensor, orders: random.Random) -> Tensor:
    """`a @ b`, one term after the other in an order drawn from `orders`.

    A sum of n terms of size x errs as its partial sums grow: by about `n * x * eps` with one
    accumulator, by `1 / sqrt(L)` of that with L that are added last. How many `a @ b` has depends
    on the processor *and on the shapes*: MKL takes 4 for 7 keys on one processor, 2 on another, 1
    on a third, while 1 serves the 64 keys of a kernel's tile, 57 of them padding. One is what every
    library takes for wide matrices, so a kernel may err as much. Elementwise products and sums
    also round alike on all processors.
    """
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    columns, rows = a.unbind(-1), b.unbind(-2)
    for i in orders.sample(range(len(columns)), len(columns)):
        total += columns[i][..., None] * rows[i][..., None, :]
    return total


def _repeated(q: Tensor, x: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def _capped(products: Tensor, q: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Scores and their slope by the scaled products."""
    scores = products * arguments.get("scale", q.shape[-1] ** -0.5)
    softcap = arguments.get("softcap")
    if softcap is None:
        return scores, torch.ones(())
    tanh = torch.tanh(scores / softcap)
    return softcap * tanh, 1 - tanh**2


def _visible(q: Tensor, k: Tensor, arguments: dict[str, Any]) -> Tensor:
    """(B, 1, Sq, Sk) bool: with equal scores, values that name their key show which have weight."""
    arguments = {name: x for name, x in arguments.items() if name not in ("scale", "softcap")}
    batch, _, k_length, _ = k.shape
    names = torch.eye(k_length).expand(batch, 1, -1, -1)
    queries = torch.zeros(batch, 1, q.shape[2], k_length)
    return attention_reference(queries, torch.zeros_like(names), names, **arguments) > 0


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, orders: random.Random, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """What "plain PyTorch" means in the tolerance rule."""
    if q.dtype == torch.float32:
        arguments.pop("return_lse")
        return _PlainFlash.apply(q, k, v, arguments, orders)
    return attention_reference(q, k, v, **arguments)


def plain_results(case: Case) -> list[dict[str, Tensor]]:
    """Results by plain PyTorch, in float32 in several orders of summation.

    Where a single score decides the largest error - one row whose `dP - delta` cancels, say - that
    error is one draw from a distribution, and so is ours: with one plain result, every fifth such
    case exceeds a factor of 3; with the worst of `_ORDERS`, one in a thousand.
    """
    count = _ORDERS if case.q.dtype == torch.float32 else 1
    orders = random.Random(0)
    return [
        outputs_and_gradients(functools.partial(plain_attention, orders=orders), case)
        for _ in range(count)
    ]


def assert_exact(attention: Attention, case: Case) -> None:
    """Outputs and gradients obey the tolerance rule."""
    exact = Case(
        *(x.double() for x in case[:3]), case.arguments, case.grad_out.double(), case.grad_lse
    )
    ours = outputs_and_gradients(attention, case)
    truth = outputs_and_gradients(attention_reference, exact)
    plain = plain_results(case)
    for name, value in ours.items():
        factor = OUTPUT_FACTOR if name in ("out", "lse") else GRADIENT_FACTOR
        assert not value.isnan().any(), f"{name} has NaN"
        worst = max((x[name] for x in plain), key=lambda x, name=name: max_error(x, truth[name]))
        assert_as_exact_as(value, worst, truth[name], factor, name)


@pytest.fixture
def case_of() -> Callable[..., Case]:
    return random_case


@pytest.fixture
def check() -> Callable[..., None]:
    return assert_exact


@pytest.fixture
def evaluate() -> Callable[..., dict[str, Tensor]]:
    return outputs_and_gradients
