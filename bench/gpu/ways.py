"""The ways to launch: on a stream, in a CUDA graph, compiled; bits as of a plain launch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.case import Model
from bench.device import DEVICE
from bench.gpu.cases import random_heads
from bench.gpu.cell import Cell
from bench.gpu.judge import same_bits
from bench.gpu.row import BOTH, Row, dtype_name
from bench.gpu.sizes import Sizes
from bench.peers.rope import frequencies
from lrk.kernels.attention import attention_triton
from lrk.kernels.cross_entropy import linear_cross_entropy_triton
from lrk.kernels.rope import phase_increments, rope_triton


def cells(model: Model, sizes: Sizes) -> Iterator[Cell]:
    """Each operation in each way."""
    for name, operation in _small_operations(model, sizes).items():
        for variant, check in WAYS.items():
            what = Row(name, BOTH, operation.shape, dtype_name(sizes.dtype), "lrk", variant)
            yield Cell(what, partial(check, what, operation))


class Operation(NamedTuple):
    """One of ours on tensors that it may be called with again after they change."""

    shape: dict[str, int]
    tensors: list[Tensor]
    function: Callable[..., Any]

    def run(self, function: Callable[..., Any] | None = None) -> Sequence[Tensor]:
        """Outputs and gradients."""
        leaves = [x.detach().requires_grad_() for x in self.tensors]
        outputs = (function or self.function)(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        gradients = torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])
        return [x.detach() for x in (*outputs, *gradients)]

    def change(self) -> None:
        """New values in the same memory."""
        for x in self.tensors:
            x.normal_()


def _small_operations(model: Model, sizes: Sizes) -> dict[str, Operation]:
    s, d, dtype = sizes.short, model.head_dim, sizes.dtype
    q, k, v = (
        random_heads(1, heads, s, d, dtype)
        for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    )
    vocab = s + 1
    hidden, weight = (torch.randn(rows, 64, device=DEVICE).to(dtype) for rows in (s, vocab))
    positions = torch.arange(s, device=DEVICE)[None]
    increments = phase_increments(frequencies(model))
    labels = torch.arange(s, device=DEVICE)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        # Ignored labels are counted first, which no graph can capture. A compiler divides less
        # exactly than PyTorch, so it is not asked for a mean.
        return linear_cross_entropy_triton(
            hidden, weight, labels, ignore_index=None, reduction="sum"
        )

    rows = {"B": 1, "S": s, "H": model.num_heads, "Hk": model.num_kv_heads, "D": d}
    return {
        "attention": Operation(rows, [q, k, v], attention_triton),
        "rope": Operation(rows, [q, k], lambda q, k: rope_triton(q, k, positions, increments)),
        "linear_cross_entropy": Operation({"N": s, "W": 64, "V": vocab}, [hidden, weight], loss),
    }


def _same(what: Row, results: Sequence[Tensor], expected: Sequence[Tensor]) -> Iterator[Row]:
    ok = same_bits(results, expected)
    yield replace(what, ok=ok, note="" if ok else "differs from a plain launch")


def check_stream(what: Row, operation: Operation) -> Iterator[Row]:
    """On a stream of its own, the same bits as on the usual one."""
    operation.change()
    expected = operation.run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = operation.run()
    torch.cuda.current_stream().wait_stream(stream)
    yield from _same(what, results, expected)


def check_graph(what: Row, operation: Operation) -> Iterator[Row]:
    """Captured with some values and replayed with others, forward and backward."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made at a first call is made before the capture
        operation.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = operation.run()
    operation.change()
    expected = [x.clone() for x in operation.run()]
    graph.replay()
    torch.cuda.synchronize()
    yield from _same(what, results, expected)


def check_compiled(what: Row, operation: Operation) -> Iterator[Row]:
    """In a graph of torch.compile, forward and backward."""
    operation.change()
    compiled = torch.compile(operation.function, fullgraph=True)
    yield from _same(what, operation.run(compiled), operation.run())


WAYS: dict[str, Callable[[Row, Operation], Iterator[Row]]] = {
    "second stream": check_stream,
    "CUDA graph": check_graph,
    "torch.compile": check_compiled,
}
