"""How fast, beside whom: each operation and its peers at the shapes of models."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from bench.case import Model
from bench.device import DEVICE
from bench.gpu import truth
from bench.gpu.cases import random_heads
from bench.gpu.cell import Cell
from bench.gpu.correct import plain_rope
from bench.gpu.judge import Judged, Verdict, judge
from bench.gpu.row import BACKWARD, BOTH, FORWARD, Row, dtype_name
from bench.gpu.sizes import Sizes
from bench.gpu.timing import timed
from bench.peers import attention, cross_entropy, rope
from bench.peers.attention import Attend, Documents
from bench.peers.cross_entropy import Loss
from bench.peers.rope import Rotate
from lrk.kernels.attention import attention_reference, attention_triton
from lrk.kernels.rope import rope_reference

LRK = "lrk"
TOLD = "lrk, told of documents"
COPY = "copy of the same bytes"
THREE_PRODUCTS = "its three products alone"


def cells(sizes: Sizes) -> Iterator[Cell]:
    """What the aims ask first, then the other lengths; last what has to be compiled for each shape,
    which takes longer than it then runs."""
    middle = sizes.lengths[len(sizes.lengths) // 2]
    b, h, hk, d, s = sizes.published
    published = AttentionShape(b, s, h, hk, d, 1, sizes.dtype)
    yield from _attention_cells(published, sizes, ATTENTION)
    yield from _cells_of_length(middle, sizes)
    yield from _decoding_cells(sizes)
    yield from _loss_cells(sizes, LOSS)
    for length in sizes.lengths:
        if length != middle:
            yield from _cells_of_length(length, sizes)
    model = next(iter(sizes.models.values()))
    yield from _rope_cells(model, middle, sizes.dtype, ROPE_COMPILED)
    yield from _loss_cells(sizes, LOSS_COMPILED)
    for documents in (1, sizes.packed):
        shape = _shape(model, middle, documents, sizes.dtype)
        yield from _attention_cells(shape, sizes, ATTENTION_COMPILED)


def _cells_of_length(length: int, sizes: Sizes) -> Iterator[Cell]:
    """Of one document of the greatest length, which takes seconds, the fastest peers only."""
    is_greatest = length == max(sizes.lengths) > min(sizes.lengths)
    some = {name: ATTENTION[name] for name in FASTEST} if is_greatest else ATTENTION
    for model in sizes.models.values():
        yield from _rope_cells(model, length, sizes.dtype, ROPE)
        for documents, providers in ((1, some), (sizes.packed, ATTENTION)):
            shape = _shape(model, length, documents, sizes.dtype)
            yield from _attention_cells(shape, sizes, providers)


def three_ways(
    what: Row,
    forward: Callable[[], tuple[Tensor, ...]],
    leaves: list[Tensor],
    upstream: tuple[Tensor, ...],
    flop: dict[str, float] | None = None,
    traffic: dict[str, float] | None = None,
) -> Iterator[Row]:
    """Forward without gradients, backward alone, and one after the other."""

    def both() -> object:
        return torch.autograd.grad(forward(), leaves, upstream)

    outputs = forward()

    def backward() -> object:
        return torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)

    backward()
    for direction, call in ((FORWARD, forward), (BACKWARD, backward), (BOTH, both)):
        amounts = [amount and amount[direction] for amount in (flop, traffic)]
        with torch.set_grad_enabled(direction != FORWARD):
            if direction == FORWARD:
                call()  # without gradients it is another graph to a compiler
            yield timed(replace(what, direction=direction), call, *amounts)


def with_verdict(what: Row, found: Verdict) -> Row:
    """The row with its errors; only ours has to obey the rule."""
    row = replace(what, error=found.error, plain_error=found.plain_error)
    return replace(row, ok=found.ok, note=found.fault) if what.provider.startswith(LRK) else row


# Attention.


class AttentionShape(NamedTuple):
    """Causal self-attention over equal documents."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    documents: int
    dtype: torch.dtype

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "B": self.batch,
            "S": self.length,
            "H": self.heads,
            "Hk": self.kv_heads,
            "D": self.head_dim,
            "documents": self.documents,
        }

    def flop(self, products: float) -> float:
        """Of products over half of each document's square."""
        pairs = self.batch * self.heads * self.length * (self.length // self.documents) / 2
        return 2 * products * pairs * self.head_dim


def _shape(model: Model, length: int, documents: int, dtype: torch.dtype) -> AttentionShape:
    whole = length // documents * documents
    heads = model.num_heads, model.num_kv_heads, model.head_dim
    return AttentionShape(1, whole, *heads, documents, dtype)


AttentionProviders = Mapping[str, Callable[[Documents], Attend]]
ATTENTION: AttentionProviders = {
    LRK: attention.lrk_triton,
    TOLD: attention.lrk_documents,
    "SDPA flash": attention.sdpa_flash,
    "SDPA cuDNN": attention.sdpa_cudnn,
    "varlen_attn": attention.varlen,
    "flash-attn": attention.flash_attn,
    "flash-attn-3": attention.flash_attn_3,
    "fla": attention.fla,
}
FASTEST = (LRK, "SDPA flash", "SDPA cuDNN")
ATTENTION_COMPILED: AttentionProviders = {"FlexAttention": attention.flex}


def _attention_cells(
    shape: AttentionShape, sizes: Sizes, providers: AttentionProviders
) -> Iterator[Cell]:
    for name, provider in providers.items():
        if name == TOLD and shape.documents > 1:  # as `lrk`
            continue
        what = Row("attention", BOTH, shape.sizes, dtype_name(shape.dtype), name)
        yield Cell(what, partial(_time_attention, what, provider, shape, sizes.error_up_to))


class AttentionInputs(NamedTuple):
    """Inputs of a shape; of its first group of heads also the truth, where that is affordable."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor
    exact: truth.Results | None
    plain: truth.Results | None


@lru_cache(maxsize=1)
def _attention_inputs(shape: AttentionShape, error_up_to: int) -> AttentionInputs:
    b, s, d = shape.batch, shape.length, shape.head_dim
    q, grad_out = (random_heads(b, shape.heads, s, d, shape.dtype) for _ in range(2))
    k, v = (random_heads(b, shape.kv_heads, s, d, shape.dtype) for _ in range(2))
    if s > error_up_to:
        return AttentionInputs(q, k, v, grad_out, None, None)
    group = slice(shape.heads // shape.kv_heads)
    tensors = q[0, group], k[0, 0], v[0, 0], grad_out[0, group]
    ends = Documents(shape.documents, s).ends
    exact, plain = (truth.of_group(*tensors, ends, dtype) for dtype in (torch.float64, shape.dtype))
    return AttentionInputs(q, k, v, grad_out, exact, plain)


def _time_attention(
    what: Row,
    provider: Callable[[Documents], Attend],
    shape: AttentionShape,
    error_up_to: int,
) -> Iterator[Row]:
    attend = provider(Documents(shape.documents, shape.length, shape.batch))
    inputs = _attention_inputs(shape, error_up_to)
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]

    def forward() -> tuple[Tensor, ...]:
        return (attend(*leaves),)

    what = _judged_attention(what, forward, leaves, inputs)
    if what.ok is False:
        yield what
        return
    flop = {
        direction: shape.flop(products)
        for direction, products in ((FORWARD, 2), (BACKWARD, 5), (BOTH, 7))
    }
    yield from three_ways(what, forward, leaves, (inputs.grad_out,), flop=flop)


def _judged_attention(
    what: Row,
    forward: Callable[[], tuple[Tensor, ...]],
    leaves: list[Tensor],
    inputs: AttentionInputs,
) -> Row:
    outputs = forward()
    # Retained as for the times: a compiled backward that is not may use its inputs up.
    gradients = torch.autograd.grad(outputs, leaves, (inputs.grad_out,), retain_graph=True)
    if inputs.exact is None or inputs.plain is None:
        return what
    heads = slice(inputs.exact.out.shape[0])
    (out,), (dq, dk, dv) = outputs, gradients
    ours = {"out": out[0, heads], "dq": dq[0, heads], "dk": dk[0, 0], "dv": dv[0, 0]}
    found = judge(
        [
            Judged(
                name, x.detach(), getattr(inputs.plain, name), getattr(inputs.exact, name),
                name != "out",
            )
            for name, x in ours.items()
        ]
    )  # fmt: skip
    return with_verdict(what, found)


# Decoding: attention of one query.

DECODING: Mapping[str, Attend] = {
    LRK: attention_triton,
    "SDPA flash": attention.one_query(SDPBackend.FLASH_ATTENTION),
    "SDPA cuDNN": attention.one_query(SDPBackend.CUDNN_ATTENTION),
}


def _decoding_cells(sizes: Sizes) -> Iterator[Cell]:
    for model in sizes.models.values():
        heads = {"H": model.num_heads, "Hk": model.num_kv_heads, "D": model.head_dim}
        shape = {"B": 1, "S": 1, "Sk": max(sizes.lengths), **heads}
        for name, attend in DECODING.items():
            what = Row("decoding", FORWARD, shape, dtype_name(sizes.dtype), name)
            yield Cell(what, partial(_time_decoding, what, attend, sizes.dtype))


@torch.no_grad()
def _time_decoding(what: Row, attend: Attend, dtype: torch.dtype) -> Iterator[Row]:
    """On keys and values as a cache holds them; they have to be read once."""
    b, _, length, heads, kv_heads, d = what.shape.values()
    q = random_heads(b, heads, 1, d, dtype)
    k, v = torch.randn(2, b, kv_heads, length, d, device=DEVICE, dtype=dtype)
    group = slice(heads // kv_heads)

    def of_group(dtype: torch.dtype) -> Tensor:
        return attention_reference(*(x.to(dtype) for x in (q[:, group], k[:, :1], v[:, :1])))

    plain, exact = of_group(dtype), of_group(torch.float64)
    found = judge([Judged("out", attend(q, k, v)[:, group], plain, exact, False)])
    what = with_verdict(what, found)
    if what.ok is False:
        yield what
        return
    yield timed(what, lambda: attend(q, k, v), traffic=2 * k.numel() * k.itemsize)


# RoPE.

RopeProviders = Mapping[str, Callable[[Model], Rotate]]
ROPE: RopeProviders = {
    LRK: rope.lrk_triton,
    "transformers": rope.transformers,
    "transformers, given tables": rope.transformers_given_tables,
    "Liger": rope.liger,
}
ROPE_COMPILED: RopeProviders = {"compiled": rope.compiled}


def _rope_cells(
    model: Model, length: int, dtype: torch.dtype, providers: RopeProviders
) -> Iterator[Cell]:
    heads = {"H": model.num_heads, "Hk": model.num_kv_heads, "D": model.head_dim}
    what = Row("rope", BOTH, {"B": 1, "S": length, **heads}, dtype_name(dtype), COPY)
    for name, provider in providers.items():
        named = replace(what, provider=name)
        yield Cell(named, partial(_time_rope, named, provider, model, length, dtype))
    if LRK in providers:
        yield Cell(what, partial(_time_copy, what, model, length, dtype))


def _time_copy(what: Row, model: Model, length: int, dtype: torch.dtype) -> Iterator[Row]:
    """q and k, or their gradients, once; for both ways twice."""
    q, k = (
        random_heads(1, h, length, model.head_dim, dtype)
        for h in (model.num_heads, model.num_kv_heads)
    )

    def copy() -> object:
        return q.clone(), k.clone()

    moved = 2 * (q.numel() + k.numel()) * q.itemsize
    copy()
    yield timed(replace(what, direction=FORWARD), copy, traffic=moved)
    yield timed(replace(what, direction=BACKWARD), copy, traffic=moved)
    yield timed(what, lambda: (copy(), copy()), traffic=2 * moved)


def _time_rope(
    what: Row, provider: Callable[[Model], Rotate], model: Model, length: int, dtype: torch.dtype
) -> Iterator[Row]:
    rotate = provider(model)
    heads = model.num_heads, model.num_kv_heads
    q, k, *upstream = (random_heads(1, h, length, model.head_dim, dtype) for h in (*heads, *heads))
    leaves = [x.requires_grad_() for x in (q, k)]
    positions = torch.arange(length, device=DEVICE)[None]
    what = _judged_rope(what, rotate, q, k, positions, model)
    if what.ok is False:
        yield what
        return

    def forward() -> tuple[Tensor, ...]:
        # Leaves may not be rotated in place, as Liger does.
        return tuple(rotate(q.view_as(q), k.view_as(k), positions))

    moved = 2 * (q.numel() + k.numel()) * q.itemsize + 8 * length
    traffic = {FORWARD: moved, BACKWARD: moved, BOTH: 2 * moved}
    yield from three_ways(what, forward, leaves, tuple(upstream), traffic=traffic)


@torch.no_grad()
def _judged_rope(
    what: Row, rotate: Rotate, q: Tensor, k: Tensor, positions: Tensor, model: Model
) -> Row:
    """By the last 64 tokens."""
    end = slice(-64, None)
    outputs = [x[:, :, end] for x in rotate(q.clone(), k.clone(), positions)]
    inv_freq = rope.frequencies(model)
    tensors = q[:, :, end], k[:, :, end]
    exact = rope_reference(*(x.double() for x in tensors), positions[:, end], inv_freq)
    plain = plain_rope(*tensors, positions[:, end], inv_freq)
    return with_verdict(
        what,
        judge(
            [
                Judged(name, *three, False)
                for name, *three in zip("qk", outputs, plain, exact, strict=True)
            ]
        ),
    )


# The loss.

LossProviders = Mapping[str, Callable[[], Loss]]
LOSS: LossProviders = {
    LRK: cross_entropy.lrk_triton,
    "eager": cross_entropy.eager,
    "F.linear_cross_entropy": cross_entropy.torch_chunked,
    "Liger": cross_entropy.liger,
    "cut-cross-entropy": cross_entropy.cut_cross_entropy,
}
LOSS_COMPILED: LossProviders = {"compiled": cross_entropy.compiled}


def _loss_cells(sizes: Sizes, providers: LossProviders) -> Iterator[Cell]:
    for tokens, model in product(sizes.loss_tokens, sizes.models.values()):
        shape = {"N": tokens, "W": model.hidden, "V": model.vocab}
        what = Row("linear_cross_entropy", BOTH, shape, dtype_name(sizes.dtype), THREE_PRODUCTS)
        for name, loss in providers.items():
            named = replace(what, provider=name)
            yield Cell(named, partial(_time_loss, named, loss, sizes.dtype))
        if LRK in providers:
            yield Cell(what, partial(_time_products, what, sizes.dtype))


def _loss_tensors(what: Row, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    tokens, width, vocab = what.shape.values()
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=dtype)
    weight = (torch.randn(vocab, width, device=DEVICE) * width**-0.5).to(dtype)
    labels = torch.randint(0, vocab, (tokens,), device=DEVICE)
    labels[-1] = -100
    return hidden, weight, labels


def _time_loss(what: Row, provider: Callable[[], Loss], dtype: torch.dtype) -> Iterator[Row]:
    """Forward and both: where gradients are made in forward, backward alone says nothing."""
    loss = provider()
    hidden, weight, labels = _loss_tensors(what, dtype)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(hidden, weight, labels), leaves)

    def forward() -> Tensor:
        with torch.no_grad():
            return loss(hidden, weight, labels)

    what = _judged_loss(what, both()[0], hidden, weight, labels)
    if what.ok is False:
        yield what
        return
    tokens, width, vocab = what.shape.values()
    forward()
    flop = 2 * tokens * width * vocab
    yield timed(replace(what, direction=FORWARD), forward, flop)
    yield timed(what, both, 3 * flop)


@torch.no_grad()
def _judged_loss(
    what: Row, grad_hidden: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor
) -> Row:
    """By the gradients of the first 256 hidden states: `(softmax - one-hot) W`, over the tokens."""
    rows = slice(0, 256)
    kept = int((labels != -100).sum())

    def gradient(dtype: torch.dtype) -> Tensor:
        exact = torch.promote_types(dtype, torch.float32)
        logits = hidden[rows].to(dtype) @ weight.to(dtype).T
        of_logits = logits.to(exact).softmax(-1)
        valid = labels[rows] != -100
        of_logits[valid.nonzero()[:, 0], labels[rows][valid]] -= 1
        of_logits[~valid] = 0
        return (of_logits / kept).to(dtype) @ weight.to(dtype)

    plain, exact = gradient(hidden.dtype), gradient(torch.float64)
    return with_verdict(what, judge([Judged("dhidden", grad_hidden[rows], plain, exact, True)]))


def _time_products(what: Row, dtype: torch.dtype) -> Iterator[Row]:
    """Logits, and the gradients of hidden states and weight from logits, as the library makes them.

    Into their own dtype and all tokens at once, which no loss can do for want of memory.
    """
    hidden, weight, _ = _loss_tensors(what, dtype)

    def forward() -> Tensor:
        return hidden @ weight.T

    def both() -> tuple[Tensor, Tensor]:
        logits = forward()
        return logits @ weight, logits.T @ hidden

    tokens, width, vocab = what.shape.values()
    both()
    flop = 2 * tokens * width * vocab
    yield timed(replace(what, direction=FORWARD), forward, flop)
    yield timed(what, both, 3 * flop)
