"""The pass over rows in Triton: statistics and gradient of one token's logits per program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..target import require_launchable
from .chunks import ROW_ALIGNMENT, Pull, Statistics

# Below every float32 logit, and finite: a difference of two infinities would be NaN.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _tanh(x):
    """tanh to float32 rounding: a series near 0, where the exponentials would cancel."""
    square = x * x
    series = 62.0 / 2835.0
    series = series * square - 17.0 / 315.0
    series = series * square + 2.0 / 15.0
    series = series * square - 1.0 / 3.0
    series = x + x * square * series
    decay = tl.exp(-2.0 * tl.abs(x))
    ratio = (1.0 - decay) / (1.0 + decay)
    return tl.where(square < 0.0625, series, tl.where(x < 0.0, -ratio, ratio))


@triton.jit
def _finish(
    x, offsets, bias_ptr, inside, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """Bias and soft cap of the logits at `offsets`, all that stands between product and softmax."""
    x = tl.where(inside, x, 0.0)
    if HAS_BIAS:
        x += tl.load(bias_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_SOFTCAP:
        x = softcap * _tanh(x / softcap)
    return x


@triton.jit
def _row_kernel(
    logits_ptr,
    gradient_ptr,
    stride_logits,
    stride_gradient,
    label_ptr,
    bias_ptr,
    lse_ptr,
    label_logit_ptr,
    logit_sum_ptr,
    pull_lse_ptr,
    pull_label_ptr,
    pull_sum_ptr,
    vocab,
    row_length,
    softcap,
    z_loss,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WANT_SUM: tl.constexpr,
    WANT_LSE: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    PULLS_SUM: tl.constexpr,
    NARROW: tl.constexpr,
):
    """Args:
    row_length: vocab rounded up to whole vectors; the columns between hold nothing.
    NARROW: the gradient's elements are half as wide as the logits' whose place they take.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride_logits
    gradient_ptr += row * stride_gradient
    columns = tl.arange(0, BLOCK)

    # A label outside these columns belongs to another shard of the vocabulary.
    label = tl.load(label_ptr + row)
    here = (label >= 0) & (label < vocab)
    label_logit = tl.load(logits_ptr + label, mask=here, other=0.0)
    label_logit = _finish(label_logit, label, bias_ptr, here, softcap, HAS_BIAS, HAS_SOFTCAP)
    tl.store(label_logit_ptr + row, tl.where(here, label_logit, 0.0))

    if WANT_LSE:
        # Every lane keeps its own running maximum and sum; they meet once, at the end.
        largest = tl.full([BLOCK], LOWEST, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        logit_sum = tl.zeros([BLOCK], tl.float32)
        for start in range(0, row_length, BLOCK):
            offsets = start + columns
            inside = offsets < vocab
            x = tl.load(logits_ptr + offsets, mask=offsets < row_length, other=0.0)
            x = _finish(x, offsets, bias_ptr, inside, softcap, HAS_BIAS, HAS_SOFTCAP)
            if WANT_SUM:
                logit_sum += tl.where(inside, x, 0.0)
            x = tl.where(inside, x, float("-inf"))
            higher = tl.maximum(largest, x)
            total = total * tl.exp(largest - higher) + tl.exp(x - higher)
            largest = higher
        top = tl.max(largest, 0)
        lse = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
        tl.store(lse_ptr + row, lse)
        if WANT_SUM:
            tl.store(logit_sum_ptr + row, tl.sum(logit_sum, 0))
    else:
        lse = tl.load(lse_ptr + row)

    if WANT_GRADIENT:
        on_probability = tl.load(pull_lse_ptr + row) * (1.0 + 2.0 * z_loss * lse)
        on_label = tl.load(pull_label_ptr + row)
        if PULLS_SUM:
            on_sum = tl.load(pull_sum_ptr + row)
        for start in range(0, row_length, BLOCK):
            offsets = start + columns
            inside = offsets < vocab
            x = tl.load(logits_ptr + offsets, mask=offsets < row_length, other=0.0)
            if NARROW:
                # Block j of the gradient covers half of block j // 2 of the logits. All threads
                # must have read that, and block 0 its own, before one of them writes.
                tl.debug_barrier()
            x = _finish(x, offsets, bias_ptr, inside, softcap, HAS_BIAS, HAS_SOFTCAP)
            gradient = on_probability * tl.exp(x - lse) + tl.where(offsets == label, on_label, 0.0)
            if PULLS_SUM:
                gradient += on_sum
            if HAS_SOFTCAP:
                capped = x / softcap
                gradient *= 1.0 - capped * capped
            gradient = gradient.to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + offsets, gradient, mask=offsets < row_length)


def tile(vocab: int) -> dict[str, int]:
    """Columns per step and warps per row."""
    return {"BLOCK": min(triton.next_power_of_2(vocab), 4096), "num_warps": 8}


def _narrow(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """The first bytes of each row of `logits` as a matrix of its shape and of `dtype`."""
    if logits.dtype == dtype:
        return logits
    ratio = logits.dtype.itemsize // dtype.itemsize
    stride = logits.stride(0) * ratio
    storage = torch.empty(0, dtype=dtype, device=logits.device)
    return storage.set_(logits.untyped_storage(), 0, logits.shape, (stride, 1))


def row_pass(
    logits: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    statistics: Statistics,
    lse_is_known: bool,
    pull: Pull | None,
    gradient_dtype: torch.dtype,
) -> Tensor:
    """See `chunks.RowPass`. Logits are float32, the gradient that replaces them may be narrower.

    Raises:
        ValueError: the tensors are on a CPU and Triton was not told to interpret.
        TypeError: the logits are float64, which no GPU kernel here computes in.
    """
    require_launchable("logits", logits)
    if logits.dtype != torch.float32:
        raise TypeError(f"hidden is {logits.dtype}: on a GPU use float32, bfloat16 or float16")
    count, vocab = logits.shape
    gradient = logits if pull is None else _narrow(logits, gradient_dtype)
    _row_kernel[(count,)](
        logits_ptr=logits,
        gradient_ptr=gradient,
        stride_logits=logits.stride(0),
        stride_gradient=gradient.stride(0),
        label_ptr=labels,
        bias_ptr=bias,
        lse_ptr=statistics.lse,
        label_logit_ptr=statistics.label_logit,
        logit_sum_ptr=statistics.logit_sum,
        pull_lse_ptr=None if pull is None else pull.lse,
        pull_label_ptr=None if pull is None else pull.label_logit,
        pull_sum_ptr=None if pull is None else pull.logit_sum,
        vocab=vocab,
        row_length=triton.cdiv(vocab, ROW_ALIGNMENT) * ROW_ALIGNMENT,
        softcap=1.0 if softcap is None else softcap,
        z_loss=0.0 if pull is None else pull.z_loss,
        HAS_BIAS=bias is not None,
        HAS_SOFTCAP=softcap is not None,
        WANT_SUM=statistics.logit_sum.numel() > 0,
        WANT_LSE=not lse_is_known,
        WANT_GRADIENT=pull is not None,
        PULLS_SUM=pull is not None and pull.logit_sum is not None,
        NARROW=gradient.dtype != logits.dtype,
        **tile(vocab),
    )
    return gradient
