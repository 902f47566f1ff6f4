"""Is every kernel right on the device? Against float64, on fresh inputs, into poisoned memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.case import Model
from bench.device import DEVICE
from bench.gpu import truth, ways
from bench.gpu.cases import AttentionCase, attention_cases, random_heads
from bench.gpu.cell import Cell
from bench.gpu.judge import Judged, judge, same_bits
from bench.gpu.row import BOTH, Row, dtype_name
from bench.gpu.sizes import Sizes
from lrk.kernels.attention import attention_reference, attention_triton
from lrk.kernels.cross_entropy import (
    linear_cross_entropy_reference,
    linear_cross_entropy_triton,
    linear_kl_reference,
    linear_kl_triton,
    token_logprobs_reference,
    token_logprobs_triton,
)
from lrk.kernels.rope import rope_reference, rope_triton
from lrk.testing import poisoned_memory

Call = Callable[[], Sequence[Tensor]]
MAX_POSITION = 2**31 - 1


def cells(sizes: Sizes) -> Iterator[Cell]:
    """The checks, those of attention first."""
    for case in attention_cases(sizes):
        what = _row("attention", case.shape, case.dtype, case.variant)
        yield Cell(what, partial(check_attention, what, case, sizes.repeats))
    yield from _rope_cells(sizes)
    yield from _loss_cells(sizes)
    yield from _divergence_cells(sizes)
    model = next(iter(sizes.models.values()))
    for documents in (None, 1, 3):
        shape = {"B": 1, "S": sizes.long, "H": model.num_heads, "Hk": model.num_kv_heads}
        variant = "one row" if documents is None else f"{documents} documents by their ends"
        what = _row("attention", shape | {"D": model.head_dim}, sizes.dtype, f"long, {variant}")
        yield Cell(what, partial(check_long_attention, what, model, sizes, documents))
    yield from _huge_cells(model, sizes)
    yield from ways.cells(model, sizes)


def _row(op: str, shape: dict[str, int], dtype: torch.dtype, variant: str) -> Row:
    return Row(op, BOTH, shape, dtype_name(dtype), "lrk", variant)


def _verdict(
    what: Row, names: Sequence[str], ours: Call, plain: Call, true: Call, repeats: int = 1
) -> Iterator[Row]:
    """Judge what `ours` returns; it must return the same bits every time.

    Args:
        names: of the results; gradients begin with `d`.
    """
    with poisoned_memory():
        first = ours()
        equal = all(same_bits(first, ours()) for _ in range(repeats - 1))
    results = [
        Judged(name, x, y, z, name.startswith("d"))
        for name, x, y, z in zip(names, first, plain(), true(), strict=True)
    ]
    yield _judged(what, results, equal)


def _judged(what: Row, results: Sequence[Judged], equal: bool) -> Row:
    """The row with what is said of its results, of which several runs were equal or not."""
    found = judge(results)
    fault = found.fault if equal else f"runs differ in their bits, a race; {found.fault}"
    return replace(what, error=found.error, plain_error=found.plain_error, ok=not fault, note=fault)


# Attention.


def check_attention(what: Row, case: AttentionCase, repeats: int) -> Iterator[Row]:
    """One variant: out, lse and gradients, with a gradient of the lse."""
    b, s, d = case.batch, case.q_length, case.head_dim
    q, grad_out = (random_heads(b, case.heads.q, s, d, case.dtype) for _ in range(2))
    k, v = (random_heads(b, case.heads.k, case.k_length, d, case.dtype) for _ in range(2))
    grad_lse = torch.randn(b, case.heads.q, s, device=DEVICE)
    arguments = case.arguments()

    def run(function: Callable[..., Any], dtype: torch.dtype) -> Sequence[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out, lse = function(*leaves, **arguments, return_lse=True)
        lse = torch.where(lse.isneginf(), 0.0, lse)  # of queries that see no key
        upstream = grad_out.to(out.dtype), grad_lse.to(lse.dtype)
        return out, lse, *torch.autograd.grad((out, lse), leaves, upstream)

    return _verdict(
        what,
        ("out", "lse", "dq", "dk", "dv"),
        partial(run, attention_triton, case.dtype),
        partial(run, attention_reference, case.dtype),
        partial(run, attention_reference, torch.float64),
        repeats,
    )


def check_long_attention(
    what: Row, model: Model, sizes: Sizes, documents: int | None
) -> Iterator[Row]:
    """The first and the last group of heads, every row and column of them."""
    s, d = sizes.long, model.head_dim
    q, grad_out = (random_heads(1, model.num_heads, s, d, sizes.dtype) for _ in range(2))
    k, v = (random_heads(1, model.num_kv_heads, s, d, sizes.dtype) for _ in range(2))
    ends = None
    if documents is not None:
        ends = torch.linspace(0, s, documents + 1, device=DEVICE).int()
        ends = torch.cat([ends[:1], ends])  # a single one would be taken for the row that it is

    def run() -> Sequence[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out, lse = attention_triton(*leaves, cu_seqlens=ends, return_lse=True)
        return out, lse, *torch.autograd.grad(out, leaves, grad_out)

    with poisoned_memory():
        out, lse, dq, dk, dv = run()
        equal = same_bits((out, lse, dq, dk, dv), run())
    results = []
    for group in (0, model.num_kv_heads - 1):
        heads = slice(*(model.num_heads // model.num_kv_heads * x for x in (group, group + 1)))
        tensors = q[0, heads], k[0, group], v[0, group], grad_out[0, heads], ends
        exact, plain = (truth.of_group(*tensors, dtype) for dtype in (torch.float64, sizes.dtype))
        ours = out[0, heads], lse[0, heads], dq[0, heads], dk[0, group], dv[0, group]
        results += [
            Judged(name, x.detach(), getattr(plain, name), getattr(exact, name), name[0] == "d")
            for name, x in zip(truth.Results._fields, ours, strict=True)
        ]
    yield _judged(what, results, equal)


# RoPE.


def _rope_cells(sizes: Sizes) -> Iterator[Cell]:
    heads = sizes.groups[0]
    pairings = {"positions up to 2^31 - 1": False, "interleaved pairs": True}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for (d, rotary), (variant, interleaved) in product(sizes.rotary_dims, pairings.items()):
            shape = {"B": 2, "S": sizes.short, "H": heads.q, "Hk": heads.k, "D": d}
            shape |= {"rotary": rotary}
            what = _row("rope", shape, dtype, variant)
            check = partial(check_rope, what, shape, dtype, interleaved, sizes.repeats)
            yield Cell(what, check)


def check_rope(
    what: Row, shape: dict[str, int], dtype: torch.dtype, interleaved: bool, repeats: int
) -> Iterator[Row]:
    """q, k and their gradients at random positions up to 2^31 - 1."""
    b, s, d = shape["B"], shape["S"], shape["D"]
    q, k, grad_q, grad_k = (
        random_heads(b, shape[heads], s, d, dtype) for heads in ("H", "Hk", "H", "Hk")
    )
    positions = torch.randint(0, MAX_POSITION, (b, s), device=DEVICE)
    positions[0, 0] = MAX_POSITION
    inv_freq = _frequencies(shape["rotary"])

    def run(function: Callable[..., Any], dtype: torch.dtype) -> Sequence[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k)]
        outputs = function(*leaves, positions, inv_freq, interleaved=interleaved)
        upstream = grad_q.to(dtype), grad_k.to(dtype)
        return *outputs, *torch.autograd.grad(outputs, leaves, upstream)

    return _verdict(
        what,
        ("q", "k", "dq", "dk"),
        partial(run, rope_triton, dtype),
        partial(run, plain_rope, dtype),
        partial(run, rope_reference, torch.float64),
        repeats,
    )


def _frequencies(rotary: int, theta: float = 5e5) -> Tensor:
    return theta ** (-torch.arange(0, rotary, 2, dtype=torch.float64, device=DEVICE) / rotary)


def plain_rope(
    q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """What a model does in its own dtype, given exact tables."""
    angle = (positions[..., None].double() * inv_freq)[:, None]
    cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
    rotary = 2 * inv_freq.numel()

    def rotated(x: Tensor) -> Tensor:
        x, rest = x[..., :rotary], x[..., rotary:]
        first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        both = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
        return torch.cat([both, rest], dim=-1)

    return rotated(q), rotated(k)


# The loss.


class LossCase(NamedTuple):
    """(N, W, V), dtype and options of a loss; or the log-probabilities of its tokens.

    Of log-probabilities with entropy, the entropy is judged.
    """

    variant: str
    shape: tuple[int, int, int]
    dtype: torch.dtype
    options: Mapping[str, Any] = MappingProxyType({})
    bias: bool = False
    logprobs: bool = False


def _many(sizes: Sizes, small: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens of which, a fifth being ignored, more are left than share a product for the weight."""
    return min(sizes.loss_tokens[0], 6000), *small[1:]


def _loss_cells(sizes: Sizes) -> Iterator[Cell]:
    n, w, v = sizes.loss_shape
    small = min(n, 300), min(w, 250), min(v, 1003)
    everything = {"label_smoothing": 0.1, "softcap": 20.0, "z_loss": 1e-4, "reduction": "sum"}
    cases = [LossCase("mean", (n, w, v), sizes.dtype)]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        cases += [
            LossCase("mean", small, dtype),
            LossCase("bias, smoothing, softcap, z-loss", small, dtype, everything, bias=True),
            LossCase("none", small, dtype, {"reduction": "none"}),
            LossCase("chunks of 7", small, dtype, {"chunk_tokens": 7}),
            LossCase("32,000 tokens", (40, small[1], min(v, 32_000)), dtype),
            LossCase("log-probabilities", small, dtype, logprobs=True),
            LossCase("entropy", small, dtype, {"entropy": True, "softcap": 20.0}, logprobs=True),
        ]
    cases.append(LossCase("chunks that share a product", _many(sizes, small), torch.bfloat16))
    for case in cases:
        shape = dict(zip("NWV", case.shape, strict=True))
        what = _row("linear_cross_entropy", shape, case.dtype, case.variant)
        yield Cell(what, partial(check_loss, what, case, sizes.repeats))


def check_loss(what: Row, case: LossCase, repeats: int) -> Iterator[Row]:
    """Loss and gradients; a fifth of the labels is ignored."""
    tokens, width, vocab = case.shape
    labels = torch.randint(0, vocab, (tokens,), device=DEVICE)
    labels[torch.rand(tokens, device=DEVICE) < 0.2] = -100
    tensors = [
        torch.randn(tokens, width, device=DEVICE).to(case.dtype),
        (3 * torch.randn(vocab, width, device=DEVICE) / width**0.5).to(case.dtype),
    ]
    names = ["loss", "dhidden", "dweight"]
    if case.bias:
        tensors.append(torch.randn(vocab, device=DEVICE).to(case.dtype))
        names.append("dbias")
    pull = torch.linspace(-0.5, 1.5, tokens, device=DEVICE)

    def run(function: Callable[..., Any], dtype: torch.dtype, **options: Any) -> Sequence[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        bias = {"bias": leaves[2]} if case.bias else {}
        result = function(*leaves[:2], labels, **bias, **options)
        loss = result[-1 if case.options.get("entropy") else 0] if case.logprobs else result
        upstream = pull.to(loss.dtype) if loss.dim() else torch.ones_like(loss)
        return loss, *torch.autograd.grad(loss, leaves, upstream)

    reference = {name: x for name, x in case.options.items() if name != "chunk_tokens"}
    ours, specified = (
        (token_logprobs_triton, token_logprobs_reference)
        if case.logprobs
        else (linear_cross_entropy_triton, linear_cross_entropy_reference)
    )
    return _verdict(
        what,
        names,
        partial(run, ours, case.dtype, **case.options),
        partial(run, specified, case.dtype, **reference),
        partial(run, specified, torch.float64, **reference),
        repeats,
    )


# The divergence.


class DivergenceCase(NamedTuple):
    """(N, W, V), dtype and options of a divergence; the teacher is twice as wide."""

    variant: str
    shape: tuple[int, int, int]
    dtype: torch.dtype
    options: Mapping[str, Any] = MappingProxyType({})


def _divergence_cells(sizes: Sizes) -> Iterator[Cell]:
    n, w, v = sizes.loss_shape
    small = min(n, 300), min(w, 250), min(v, 1003)
    everything = {"softcap": 20.0, "teacher_softcap": 30.0, "temperature": 2.0}
    cases = [DivergenceCase("mean", (n, w, v), sizes.dtype)]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        cases += [
            DivergenceCase("mean", small, dtype),
            DivergenceCase("softcaps, temperature", small, dtype, everything),
            DivergenceCase("none", small, dtype, {"reduction": "none", "temperature": 0.5}),
        ]
    many = _many(sizes, small)
    cases.append(DivergenceCase("chunks that share a product", many, torch.bfloat16))
    for case in cases:
        shape = dict(zip("NWV", case.shape, strict=True))
        what = _row("linear_kl", shape, case.dtype, case.variant)
        yield Cell(what, partial(check_divergence, what, case, sizes.repeats))


def check_divergence(what: Row, case: DivergenceCase, repeats: int) -> Iterator[Row]:
    """Divergence and the student's gradients; a fifth of the labels is ignored."""
    tokens, width, vocab = case.shape
    labels = torch.randint(0, vocab, (tokens,), device=DEVICE)
    labels[torch.rand(tokens, device=DEVICE) < 0.2] = -100
    student, teacher = (
        (
            torch.randn(tokens, size, device=DEVICE).to(case.dtype),
            (3 * torch.randn(vocab, size, device=DEVICE) / size**0.5).to(case.dtype),
        )
        for size in (width, 2 * width)
    )
    pull = torch.linspace(-0.5, 1.5, tokens, device=DEVICE)

    def run(function: Callable[..., Any], dtype: torch.dtype) -> Sequence[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in student]
        loss = function(*leaves, *(x.to(dtype) for x in teacher), labels, **case.options)
        upstream = pull.to(loss.dtype) if loss.dim() else torch.ones_like(loss)
        return loss, *torch.autograd.grad(loss, leaves, upstream)

    return _verdict(
        what,
        ("loss", "dhidden", "dweight"),
        partial(run, linear_kl_triton, case.dtype),
        partial(run, linear_kl_reference, case.dtype),
        partial(run, linear_kl_reference, torch.float64),
        repeats,
    )


# More elements than 32 bits count: the end of a long tensor, computed again from itself alone.


def _huge_cells(model: Model, sizes: Sizes) -> Iterator[Cell]:
    h, d = model.num_heads, model.head_dim
    s = sizes.huge_elements // (h * d) + 5
    rows = {"B": 1, "S": s, "H": h, "Hk": model.num_kv_heads, "D": d}
    tokens = {"N": s, "W": h * d, "V": min(model.vocab, 512)}
    variant = f"{sizes.huge_elements:,} elements and more"
    for op, shape, check in (
        ("rope", rows, check_huge_rope),
        ("attention", rows, check_huge_attention),
        ("linear_cross_entropy", tokens, check_huge_loss),
    ):
        what = _row(op, shape, sizes.dtype, variant)
        yield Cell(what, partial(check, what, shape, sizes.dtype))


def check_huge_rope(what: Row, shape: dict[str, int], dtype: torch.dtype) -> Iterator[Row]:
    s, d = shape["S"], shape["D"]
    q, k = (random_heads(1, shape[heads], s, d, dtype) for heads in ("H", "Hk"))
    positions = torch.arange(s, device=DEVICE)[None]
    inv_freq = _frequencies(d)
    end = slice(s - 5, s)

    def of_end(function: Callable[..., Any], dtype: torch.dtype) -> Sequence[Tensor]:
        return function(q[:, :, end].to(dtype), k[:, :, end].to(dtype), positions[:, end], inv_freq)

    def ours() -> Sequence[Tensor]:
        return [x[:, :, end].clone() for x in rope_triton(q, k, positions, inv_freq)]

    return _verdict(
        what,
        ("q", "k"),
        ours,
        partial(of_end, plain_rope, dtype),
        partial(of_end, rope_reference, torch.float64),
    )


def check_huge_attention(what: Row, shape: dict[str, int], dtype: torch.dtype) -> Iterator[Row]:
    """A short window makes few scores, and the last rows depend on a few keys only."""
    s, d = shape["S"], shape["D"]
    window, judged = 100, 64
    q, grad_out = (random_heads(1, shape["H"], s, d, dtype) for _ in range(2))
    k, v = (random_heads(1, shape["Hk"], s, d, dtype) for _ in range(2))

    def run(function: Callable[..., Any], dtype: torch.dtype, start: int) -> Sequence[Tensor]:
        leaves = [x[:, :, start:].to(dtype).requires_grad_() for x in (q, k, v)]
        out, lse = function(*leaves, window=window, return_lse=True)
        gradients = torch.autograd.grad(out, leaves, grad_out[:, :, start:].to(dtype))
        return [x[:, :, -judged:].clone() for x in (out.detach(), lse.detach(), *gradients)]

    end = max(s - window - judged, 0)
    return _verdict(
        what,
        ("out", "lse", "dq", "dk", "dv"),
        partial(run, attention_triton, dtype, 0),
        partial(run, attention_reference, dtype, end),
        partial(run, attention_reference, torch.float64, end),
    )


def check_huge_loss(what: Row, shape: dict[str, int], dtype: torch.dtype) -> Iterator[Row]:
    """The gradients of the last hidden states, which depend on nothing before them."""
    tokens, width, vocab = shape.values()
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=dtype)
    weight = (3 * torch.randn(vocab, width, device=DEVICE) / width**0.5).to(dtype)
    labels = torch.randint(0, vocab, (tokens,), device=DEVICE)

    def run(function: Callable[..., Any], dtype: torch.dtype, start: int) -> Sequence[Tensor]:
        leaf = hidden[start:].to(dtype).requires_grad_()
        loss = function(leaf, weight.to(dtype), labels[start:], reduction="sum")
        return [x[-64:].clone() for x in torch.autograd.grad(loss, leaf)]

    end = max(tokens - 64, 0)
    return _verdict(
        what,
        ("dhidden",),
        partial(run, linear_cross_entropy_triton, dtype, 0),
        partial(run, linear_cross_entropy_reference, dtype, end),
        partial(run, linear_cross_entropy_reference, torch.float64, end),
    )
