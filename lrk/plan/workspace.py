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
    ChunkSizes,
    Kept,
    Pull,
    chunk_sizes,
    run,
    sum_dtype,
)
from lrk.kernels.cross_entropy.cpu import BLOCK_ELEMENTS
from lrk.kernels.cross_entropy.kl import divergence
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
    rows = batch * heads * _up_to(length, 128)
    nbytes = 4 * rows * _up_to(head_dim, 32) + 4 * rows
    if k.shape[1] != heads:
        nbytes += 2 * batch * heads * k.shape[2] * head_dim * k.element_size()
    return Workspace(ATTENTION, nbytes)


def flash_attention_backward_workspace(q: Tensor, k: Tensor, version: int) -> Workspace:
    """Of the backward pass of FlashAttention 2, 3 or 4, which runs on a GPU alone.

    All sum dq in float32 and keep the row sums of dO * O. With grouped heads, 2 has dk and dv of
    each query head, and 3 and 4 sum those of the key heads in float32; 3 and 4 keep the lse in
    base 2 as well. Lengths are rounded up to tiles, here of 128. Derived from the packages' source
    (`mha_bwd` of 2 and 3, `_flash_attn_bwd` of 4), not measured; deterministic sums take more.

    Args:
        q: (B, Sq, Hq, D); k: (B, Sk, Hk, D).
    """
    batch, length, heads, head_dim = q.shape
    _, k_length, k_heads, _ = k.shape
    rows = batch * heads * _up_to(length, 128)
    if version == 3:
        padded = next((size for size in (64, 96, 128, 192) if head_dim <= size), 256)
    elif version == 2 and head_dim > 128:
        padded = _up_to(head_dim, 64)
    else:
        padded = _up_to(head_dim, 32)
    nbytes = 4 * rows * padded + 4 * rows * (1 if version == 2 else 2)
    if heads != k_heads and version == 2:
        nbytes += 2 * batch * heads * k_length * head_dim * k.element_size()
    elif heads != k_heads:
        nbytes += 2 * 4 * batch * k_heads * _up_to(k_length, 128) * padded
    return Workspace(ATTENTION, nbytes)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


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
        dtype = _dtype_on_gpu(hidden)
        return Workspace(
            LOSS, loss_bytes_on_gpu(tokens, hidden, weight, dtype, chunk_tokens, needs)
        )
    shape = weight.shape[0], weight.shape[1]
    nbytes = _loss_on_cpu(
        tokens, shape, hidden.dtype, weight.dtype, compute_dtype, chunk_tokens, tuple(needs)
    )
    return Workspace(LOSS, nbytes)


def _dtype_on_gpu(hidden: Tensor) -> torch.dtype:
    """Of the operands of products there, from fake CPU tensors."""
    autocast = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if autocast else hidden.dtype


def loss_bytes_on_gpu(
    tokens: int,
    hidden: Tensor,
    weight: Tensor,
    compute_dtype: torch.dtype,
    chunk_tokens: int | None,
    needs: Sequence[bool],
) -> int:
    """What `chunks.run` allocates with a GPU's matrix products, which widen as they go.

    For every token lse, nll, two factors, index and label; a chunk's logits, and if they are not
    replaced by it the gradient of several; the gathered rows of these; and the product that becomes
    the gradient of hidden, beside its rounded copy.

    Args:
        hidden: (..., H). weight: (V, H).
    """
    wide = sum_dtype(compute_dtype).itemsize
    count = tokens - 1
    sizes = _chunk_sizes_on_gpu(count, weight, compute_dtype, chunk_tokens, needs)
    room = _room_on_gpu(count, weight, compute_dtype, sizes)
    in_group = min(sizes.gradient, count) * max(
        _gathered(hidden, compute_dtype), _multiplied(hidden, compute_dtype, needs)
    )
    return count * (4 * wide + 16) + room + in_group + _converted(weight, compute_dtype)


def _chunk_sizes_on_gpu(
    count: int,
    weight: Tensor,
    compute_dtype: torch.dtype,
    chunk_tokens: int | None,
    needs: Sequence[bool],
    matrices: int = 1,
) -> ChunkSizes:
    if chunk_tokens is not None:
        return ChunkSizes(chunk_tokens, chunk_tokens)
    device = torch.device("cuda")
    return chunk_sizes(count, weight.shape[0], compute_dtype, device, needs[1], matrices)


def _room_on_gpu(
    count: int,
    weight: Tensor,
    compute_dtype: torch.dtype,
    sizes: ChunkSizes,
    matrices: int = 1,
) -> int:
    """Bytes of a chunk's logits, and of the gradient of several where it is beside them."""
    row = matrices * min(sizes.logits, count) * sum_dtype(compute_dtype).itemsize
    if sizes.gradient > sizes.logits:
        row += min(sizes.gradient, count) * compute_dtype.itemsize
    return row * _up_to(weight.shape[0], ROW_ALIGNMENT)


def _gathered(hidden: Tensor, compute_dtype: torch.dtype) -> int:
    """Bytes for each token while its hidden state is gathered, and rounded if that is another."""
    size, narrow = hidden.shape[-1], hidden.element_size()
    return size * (narrow if hidden.dtype == compute_dtype else narrow + compute_dtype.itemsize)


def _multiplied(hidden: Tensor, compute_dtype: torch.dtype, needs: Sequence[bool]) -> int:
    """Bytes for each token of operand, gradient of hidden, and that in hidden's dtype."""
    narrow, wide = hidden.element_size(), sum_dtype(compute_dtype).itemsize
    product = wide + (narrow if narrow != wide else 0) if needs[0] else 0
    return hidden.shape[-1] * (compute_dtype.itemsize + product)


def _converted(weight: Tensor, compute_dtype: torch.dtype) -> int:
    return 0 if weight.dtype == compute_dtype else weight.numel() * compute_dtype.itemsize


def divergence_workspace(
    device: Device,
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    chunk_tokens: int | None,
    teacher_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    needs: Sequence[bool],
) -> Workspace:
    """Of the divergence whose gradients are computed in forward, without those gradients.

    As `loss_workspace`, with the dtypes as the operation was told.
    """
    if device.kind == "cuda":
        dtypes = _dtype_on_gpu(hidden), _dtype_on_gpu(teacher_hidden)
        heads = (hidden, weight), (teacher_hidden, teacher_weight)
        return Workspace(LOSS, divergence_bytes_on_gpu(*heads, *dtypes, chunk_tokens, needs))
    tensors = [x.detach() for x in (hidden, weight, teacher_hidden, teacher_weight)]
    shapes = tuple((tuple(x.shape), x.dtype) for x in tensors)
    nbytes = _divergence_on_cpu(shapes, teacher_dtype, compute_dtype, chunk_tokens, tuple(needs))
    return Workspace(LOSS, nbytes)


def divergence_bytes_on_gpu(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    compute_dtype: torch.dtype,
    teacher_dtype: torch.dtype,
    chunk_tokens: int | None,
    needs: Sequence[bool],
) -> int:
    """What `kl.divergence.run` allocates with a GPU's matrix products, which widen as they go.

    For every token its divergence, factor, index and label; a chunk's logits of both; and as for
    the loss the gradient of several, gathered rows and the product, beside which are the gathered
    rows of the teacher's chunk.

    Args:
        student, teacher: hidden (..., H) and weight (V, H) of each.
    """
    (hidden, weight), (teacher_hidden, teacher_weight) = student, teacher
    count = hidden.numel() // hidden.shape[-1] - 1
    sizes = _chunk_sizes_on_gpu(count, weight, compute_dtype, chunk_tokens, needs, matrices=2)
    room = _room_on_gpu(count, weight, compute_dtype, sizes, matrices=2)
    together, chunk = min(sizes.gradient, count), min(sizes.logits, count)
    in_group = max(
        together * _gathered(hidden, compute_dtype),
        together * hidden.shape[-1] * compute_dtype.itemsize
        + chunk * _gathered(teacher_hidden, teacher_dtype),
        together * _multiplied(hidden, compute_dtype, needs),
    )
    converted = _converted(weight, compute_dtype) + _converted(teacher_weight, teacher_dtype)
    return count * (2 * sum_dtype(compute_dtype).itemsize + 16) + room + in_group + converted


@functools.lru_cache
def _divergence_on_cpu(
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...],
    teacher_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    chunk_tokens: int | None,
    needs: tuple[bool, bool, bool],
) -> int:
    def compute(*tensors: Tensor) -> Any:
        hidden, weight, teacher_hidden, teacher_weight = tensors
        hidden, teacher_hidden = (x.flatten(0, -2) for x in (hidden, teacher_hidden))
        count = len(hidden) - 1
        index, labels = (hidden.new_empty(count, dtype=torch.int64) for _ in range(2))
        _, gradients = divergence.run(
            _pairs_of_a_block,
            divergence.Head(hidden, weight, None, None),
            divergence.Head(teacher_hidden, teacher_weight, None, None),
            Kept(index, labels),
            1.0,
            chunk_tokens,
            compute_dtype,
            teacher_dtype,
            hidden.new_ones(count, dtype=sum_dtype(compute_dtype)),
            needs,
        )
        return gradients

    return _beyond_results(
        compute, lambda: tuple(torch.empty(shape, dtype=dtype) for shape, dtype in shapes)
    )


def _pairs_of_a_block(logits: Tensor, *_: Any) -> None:
    """What `kl.cpu.pair_pass` has of a block of rows at most: the ratio, the terms near and far,
    which of them is chosen, a byte each, and the choice."""
    rows = min(len(logits), max(BLOCK_ELEMENTS // logits.shape[1], 1))
    shape = (rows, logits.shape[1])
    made = [logits.new_empty(shape) for _ in range(4)], logits.new_empty(shape, dtype=torch.bool)
    del made


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
