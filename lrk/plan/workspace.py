"""What lrk's operations and PyTorch's attention allocate inside, where no dispatch mode looks.

For a CPU the operations' own code is run on fake tensors. For a GPU it is counted by formulas that
follow the launchers: a PyTorch without CUDA cannot index a fake GPU tensor.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from lrk.kernels.attention import cpu as attention_on_cpu
from lrk.kernels.attention.mask import Mask
from lrk.kernels.cross_entropy.chunks import (
    ROW_ALIGNMENT,
    Kept,
    Pull,
    chunk_size,
    run,
    sum_dtype,
)
from lrk.kernels.rope import cpu as rope_on_cpu
from lrk.plan.ledger import ATTENTION, LOSS, TEMPORARY, Ledger, Workspace

# A table of packed documents has a record of eight int32 for each tile. Its share of a step is far
# below a thousandth, so that the smallest tile will do for all.
RECORD_BYTES, SMALLEST_TILE = 32, 16


class Device(NamedTuple):
    """Where a step is planned to run.

    Attributes:
        kind: `cuda` or `cpu`.
        granularity: bytes that every allocation is rounded up to.
    """

    kind: str
    granularity: int


def attention_workspace(
    device: Device, q: Tensor, k: Tensor, v: Tensor, mask: Sequence[Any], lse: Tensor | None = None
) -> Workspace:
    """Of the forward pass, or with its `lse` of the backward pass."""
    if device.kind == "cpu":
        shapes = tuple(q.shape), tuple(k.shape)
        return Workspace(ATTENTION, _attention_on_cpu(*shapes, q.dtype, lse is not None))
    documents = 0 if mask[0] is None else mask[0].shape[0] - 1
    table = 0
    if documents:
        table = RECORD_BYTES * (q.shape[0] * q.shape[2] // SMALLEST_TILE + documents)
    if lse is None:
        return Workspace(ATTENTION, table)
    delta = lse.numel() * lse.element_size()
    return Workspace(ATTENTION, delta + 2 * table)


def sdpa_backward_workspace(device: Device, q: Tensor, k: Tensor) -> Workspace | None:
    """Of `scaled_dot_product_attention`'s backward pass.

    On a GPU that is FlashAttention-2 as PyTorch builds it: float32 sums of dq and the row sums of
    dO * O, both over lengths rounded up to 128; with grouped heads also dk and dv of each query
    head.
    """
    if device.kind == "cpu":
        return None
    batch, heads, length, head_dim = q.shape
    rows = batch * heads * (-(-length // 128) * 128)
    nbytes = 4 * rows * (-(-head_dim // 32) * 32) + 4 * rows
    if k.shape[1] != heads:
        nbytes += 2 * batch * heads * k.shape[2] * head_dim * k.element_size()
    return Workspace(ATTENTION, nbytes)


def rope_workspace(device: Device, q: Tensor, k: Tensor, pairs: int) -> Workspace | None:
    """The kernel needs none. The CPU has two blocks of heads in the wide dtype, and angles."""
    if device.kind == "cuda":
        return None
    batch, heads, length, _ = q.shape
    width = batch * (heads + k.shape[1]) * 2 * pairs
    tokens = min(length, max(1, rope_on_cpu._BLOCK_ELEMENTS // width))
    wide = sum_dtype(q.dtype).itemsize
    angles = 3 * 8 + wide  # two phases, their float64, and the sign
    return Workspace(TEMPORARY, tokens * (2 * width * wide + batch * pairs * angles))


def loss_workspace(
    device: Device,
    hidden: Tensor,
    weight: Tensor,
    compute_dtype: torch.dtype,
    chunk_tokens: int | None,
    needs: Sequence[bool],
) -> Workspace:
    """Of the loss whose gradients are computed in forward, without those gradients.

    One token has no label, the first of a sample, so that the others are gathered.

    Args:
        compute_dtype: as the operation was told, on fake CPU tensors.
    """
    tokens = hidden.numel() // hidden.shape[-1]
    if device.kind == "cuda":
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else hidden.dtype
        return Workspace(
            LOSS, loss_bytes_on_gpu(tokens, hidden, weight, dtype, chunk_tokens, needs)
        )
    shape = weight.shape[0], weight.shape[1]
    nbytes = _loss_on_cpu(
        tokens, shape, hidden.dtype, weight.dtype, compute_dtype, chunk_tokens, tuple(needs)
    )
    return Workspace(LOSS, nbytes)


def loss_bytes_on_gpu(
    tokens: int,
    hidden: Tensor,
    weight: Tensor,
    compute_dtype: torch.dtype,
    chunk_tokens: int | None,
    needs: Sequence[bool],
) -> int:
    """What `chunks.run` allocates with a GPU's matrix products, which widen as they go.

    For every token lse, nll, two factors, index and label; a chunk's logits and gathered rows; and
    the product that becomes the gradient of hidden: twice where chunks follow each other, or once
    beside its rounded copy.

    Args:
        hidden: (..., H). weight: (V, H).
    """
    vocab, size = weight.shape
    wide = sum_dtype(compute_dtype).itemsize
    count = tokens - 1
    limit = chunk_tokens or chunk_size(count, vocab, wide, torch.device("cuda"))
    chunk = min(limit, count)
    following = min(limit, count - chunk)
    logits = chunk * (-(-vocab // ROW_ALIGNMENT) * ROW_ALIGNMENT) * wide
    row, narrow = size * compute_dtype.itemsize, size * hidden.element_size()
    gathered = narrow if hidden.dtype == compute_dtype else narrow + row
    product = size * wide if needs[0] else 0
    rounded = narrow if needs[0] and hidden.element_size() != wide else 0
    in_chunk = max(
        chunk * gathered,
        chunk * (row + product + rounded),
        chunk * (row + product) + following * gathered,
        chunk * product + following * (row + product),
    )
    converted = 0 if weight.dtype == compute_dtype else vocab * row
    return count * (4 * wide + 16) + logits + in_chunk + converted


@functools.lru_cache
def _loss_on_cpu(
    tokens: int,
    weight_shape: tuple[int, int],
    hidden_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    chunk_tokens: int | None,
    needs: tuple[bool, bool, bool],
) -> int:
    def compute(hidden: Tensor, weight: Tensor) -> Any:
        count, wide = tokens - 1, sum_dtype(compute_dtype)
        index, labels = (hidden.new_empty(count, dtype=torch.int64) for _ in range(2))
        share = hidden.new_ones(count, dtype=wide)
        _, gradients = run(
            lambda logits, *_: logits,  # the pass over rows is in place
            hidden,
            weight,
            None,
            Kept(index, labels),
            None,
            chunk_tokens,
            compute_dtype,
            pull=Pull(share, -share, None),
            needs=needs,
        )
        return gradients

    return _beyond_results(
        compute,
        lambda: (
            torch.empty(tokens, weight_shape[1], dtype=hidden_dtype),
            torch.empty(weight_shape, dtype=weight_dtype),
        ),
    )


@functools.lru_cache
def _attention_on_cpu(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], dtype: torch.dtype, backward: bool
) -> int:
    mask = Mask(None, None, None, None, None, True, 0, None)

    def inputs() -> tuple[Tensor, ...]:
        q, k, v = (_heads_inside(shape, dtype) for shape in (q_shape, k_shape, k_shape))
        if not backward:
            return q, k, v
        out, lse = attention_on_cpu.forward(q, k, v, mask, 1.0, None)
        return torch.empty_like(out), q, k, v, out, lse

    def compute(*tensors: Tensor) -> Any:
        if not backward:
            q, k, v = tensors
            return attention_on_cpu.forward(q, k, v, mask, 1.0, None)
        grad_out, q, k, v, out, lse = tensors
        return attention_on_cpu.backward(grad_out, None, q, k, v, out, lse, mask, 1.0, None)

    return _beyond_results(compute, inputs)


def _heads_inside(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(B, H, S, D) with the heads of a token side by side, as a model's projections leave them."""
    batch, heads, length, head_dim = shape
    return torch.empty(batch, length, heads, head_dim, dtype=dtype).transpose(1, 2)


def _beyond_results(compute: Callable[..., Any], inputs: Callable[[], tuple[Tensor, ...]]) -> int:
    """Peak bytes of `compute(*inputs())` on fake tensors, less its inputs and its results."""
    ledger = Ledger(lambda *_: (None, 0))
    with unset_fake_temporarily(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        given = inputs()
        ledger.hold(given, TEMPORARY)
        held = ledger.usage()[-1].total
        with ledger:
            results = compute(*given)
        kept = [result for result in results if result is not None]
        sizes = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in kept}
        peak = max(usage.total for usage in ledger.usage())
    return max(peak - held - sum(sizes.values()), 0)
