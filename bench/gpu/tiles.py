"""Which tiles are fastest: the candidates of lrk/kernels/attention/tiles.py against each other."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton.runtime.errors import OutOfResources

from bench.case import Model
from bench.device import DEVICE
from bench.gpu.cases import AttentionCase, random_heads
from bench.gpu.cell import Cell
from bench.gpu.correct import check_attention
from bench.gpu.row import BACKWARD, BOTH, FORWARD, Row, dtype_name
from bench.gpu.sizes import Heads, Sizes
from bench.gpu.timing import timed
from bench.peers import Unavailable
from lrk.kernels.attention import forward, key_gradient, query_gradient, tiles
from lrk.kernels.attention.mask import Mask
from lrk.kernels.attention.memory import is_described
from lrk.kernels.attention.tiles import FORWARD as OUT
from lrk.kernels.attention.tiles import KEY_GRADIENT, QUERY_GRADIENT, Tiles
from lrk.kernels.cross_entropy import linear_cross_entropy_triton

CANDIDATES = {
    OUT: (
        Tiles(128, 64, 8, 2),
        Tiles(128, 64, 8, 3),
        Tiles(128, 128, 8, 2),
        Tiles(128, 128, 8, 3),
        Tiles(64, 64, 4, 2),
        Tiles(64, 128, 4, 2),
    ),
    QUERY_GRADIENT: (
        Tiles(128, 64, 8, 2),
        Tiles(64, 64, 4, 2),
        Tiles(128, 128, 8, 2),
        Tiles(128, 32, 8, 3),
    ),
    KEY_GRADIENT: (
        Tiles(64, 128, 8, 2),
        Tiles(64, 128, 8, 1),
        Tiles(64, 128, 8, 2, split=True),
        Tiles(32, 128, 8, 2),
        Tiles(32, 128, 8, 2, split=True),
        Tiles(32, 128, 8, 3),
        Tiles(64, 64, 4, 1),
        Tiles(64, 64, 4, 2),
        Tiles(32, 64, 4, 2),
    ),
}
PRODUCTS = {OUT: 2, QUERY_GRADIENT: 3, KEY_GRADIENT: 4}
LOSS_CHUNKS = (None, 1024, 2048, 4096)
"""Tokens whose logits, and gradients, are in memory at once; None: as the loss chooses."""
IN_THE_TABLE = "in the table now"


class Candidate(NamedTuple):
    """A tile for one of the kernels."""

    kernel: str
    tiles: Tiles

    @property
    def name(self) -> str:
        m, n, warps, stages, split = self.tiles
        return f"{self.kernel} {m}x{n} w{warps} s{stages}{' split' if split else ''}"


def candidates(sizes: Sizes, kernel: str, documents: bool) -> list[Candidate]:
    """What the table has, and as many others as are wanted."""
    model = next(iter(sizes.models.values()))
    some = [in_the_table(kernel, model, sizes.dtype, documents), *CANDIDATES[kernel]]
    return [Candidate(kernel, each) for each in dict.fromkeys(some[: sizes.candidates])]


def in_the_table(kernel: str, model: Model, dtype: torch.dtype, documents: bool) -> Tiles:
    """The tile that a causal call of the model takes on this card."""
    q = torch.empty(1, 1, 1, model.head_dim, dtype=dtype)
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    return tiles.choose(kernel, arch, q, _mask(1, documents), None, is_described(arch, q))


def _mask(length: int, documents: bool) -> Mask:
    """Causal, in one row that is a document; or told so by its ends, with an empty document before
    it, for a single one would be taken for the row that it is."""
    ends = torch.tensor([0, 0, length], dtype=torch.int32, device=DEVICE) if documents else None
    return Mask(ends, ends, None, None, None, causal=True, q_offset=0, window=None)


@contextmanager
def with_tiles(candidate: Candidate) -> Iterator[None]:
    """Within the block the candidate's kernel is cut as it says, the others as always."""
    choose = tiles.choose

    def chosen(kernel: str, *arguments: Any) -> Tiles:
        return candidate.tiles if kernel == candidate.kernel else choose(kernel, *arguments)

    with mock.patch.object(tiles, "choose", chosen):
        yield


def cells(sizes: Sizes) -> Iterator[Cell]:
    """Each kernel with each tile, where a row is one document and by the ends of documents."""
    model = next(iter(sizes.models.values()))
    heads = Heads(model.num_heads, model.num_kv_heads)
    shape = {"B": 1, "S": sizes.long, "H": heads.q, "Hk": heads.k, "D": model.head_dim}
    dtype = dtype_name(sizes.dtype)
    for kernel, documents in product(CANDIDATES, (False, True)):
        direction = FORWARD if kernel == OUT else BACKWARD
        layout = "documents" if documents else "rows"
        for candidate in candidates(sizes, kernel, documents):
            what = Row("attention", direction, shape, dtype, "lrk", f"{candidate.name}, {layout}")
            if candidate.tiles == in_the_table(kernel, model, sizes.dtype, documents):
                what = replace(what, note=IN_THE_TABLE)
            yield Cell(what, partial(_time_tiles, what, candidate, documents, model, sizes))
    tokens, vocab, width = sizes.loss_tokens[-1], model.vocab, model.hidden
    for chunk in LOSS_CHUNKS:
        shape = {"N": tokens, "W": width, "V": vocab}
        name = "chunks as chosen" if chunk is None else f"chunks of {chunk}"
        what = Row("linear_cross_entropy", BOTH, shape, dtype, "lrk", name)
        yield Cell(what, partial(_time_chunks, what, chunk, sizes.dtype))


def _time_tiles(
    what: Row, candidate: Candidate, documents: bool, model: Model, sizes: Sizes
) -> Iterator[Row]:
    """Right first, at a length that float64 takes; then the time."""
    heads = Heads(model.num_heads, model.num_kv_heads)
    variant = "documents" if documents else "causal"
    case = AttentionCase(variant, sizes.dtype, model.head_dim, heads, 1, sizes.short, sizes.short)
    with with_tiles(candidate):
        try:
            (checked,) = check_attention(what, case, repeats=2)
        except OutOfResources as reason:
            raise Unavailable(f"the card is too small for the tile: {reason}") from reason
        if not checked.ok:
            yield checked
            return
        call = _kernel(candidate.kernel, documents, model, sizes)
        call()
        pairs = sizes.long**2 / 2
        flop = 2 * PRODUCTS[candidate.kernel] * model.num_heads * model.head_dim * pairs
        yield timed(replace(checked, note=what.note), call, flop)


def _kernel(kernel: str, documents: bool, model: Model, sizes: Sizes) -> Callable[[], object]:
    """One launch of one of attention's kernels, at the long length."""
    s, d, scale = sizes.long, model.head_dim, model.head_dim**-0.5
    q, grad_out = (random_heads(1, model.num_heads, s, d, sizes.dtype) for _ in range(2))
    k, v = (random_heads(1, model.num_kv_heads, s, d, sizes.dtype) for _ in range(2))
    mask = _mask(s, documents)
    if kernel == OUT:
        return lambda: forward.launch(q, k, v, mask, scale, None)
    out, lse = forward.launch(q, k, v, mask, scale, None)
    delta, grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (lse, q, k, v))
    if kernel == QUERY_GRADIENT:
        return lambda: query_gradient.launch(
            grad_out, None, q, k, v, out, lse, delta, mask, scale, None, grad_q
        )
    return lambda: key_gradient.launch(
        grad_out, q, k, v, lse, delta, mask, scale, None, grad_k, grad_v
    )


def _time_chunks(what: Row, chunk: int | None, dtype: torch.dtype) -> Iterator[Row]:
    tokens, width, vocab = what.shape.values()
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=dtype, requires_grad=True)
    weight = (torch.randn(vocab, width, device=DEVICE) * width**-0.5).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), device=DEVICE)

    def call() -> object:
        loss = linear_cross_entropy_triton(hidden, weight, labels, chunk_tokens=chunk)
        return torch.autograd.grad(loss, (hidden, weight))

    call()
    yield timed(what, call, flop=6 * tokens * width * vocab)


class Timed(NamedTuple):
    """A tile and how long its kernel took."""

    milliseconds: float
    tiles: str
    is_in_the_table: bool


def best(rows: Iterable[Row]) -> dict[tuple[str, str], list[Timed]]:
    """For each kernel and layout the tiles that are right, the fastest first."""
    found: dict[tuple[str, str], list[Timed]] = {}
    for row in rows:
        if row.op == "attention" and row.milliseconds is not None:
            name, layout = row.variant.rsplit(", ", 1)
            kernel = next(each for each in CANDIDATES if name.startswith(each))
            tile = name.removeprefix(kernel).strip()
            timed = Timed(row.milliseconds, tile, row.note == IN_THE_TABLE)
            found.setdefault((kernel, layout), []).append(timed)
    return {key: sorted(entries) for key, entries in found.items()}
