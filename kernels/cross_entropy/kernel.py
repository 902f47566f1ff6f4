"""The pass over rows in Triton: statistics and gradient of one token's logits per program."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..target import require_launchable
from .chunks import ROW_ALIGNMENT, Pull, Statistics

# Below every float32 logit, and finite: a difference of two infinities would be NaN.
LOWEST = tl.constexpr(-3.0e38)
# Its exponential is 0, and unlike an infinity it may be multiplied by that.
FLOOR = tl.constexpr(-1000.0)


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
def finish(
    x, offsets, inside, bias_ptr, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """Logits from products: bias and soft cap; and the latter's slope, d logit / d product."""
    x = tl.where(inside, x, 0.0)
    slope = 1.0
    if HAS_BIAS:
        x += tl.load(bias_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_SOFTCAP:
        capped = _tanh(x / softcap)
        slope = 1.0 - capped * capped
        x = softcap * capped
    return x, slope


@triton.jit
def _row_kernel(
    logits_ptr,
    gradient_ptr,
    stride_logits,
    stride_gradient,
    label_ptr,
    bias_ptr,
    lse_ptr,
    nll_ptr,
    logit_sum_ptr,
    entropy_ptr,
    on_probability_ptr,
    on_label_ptr,
    on_logit_ptr,
    on_entropy_ptr,
    vocab,
    row_length,
    softcap,
    z_loss,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WANT_SUM: tl.constexpr,
    WANT_ENTROPY: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    PULLS_LOGITS: tl.constexpr,
    NARROW: tl.constexpr,
    ON_CHIP: tl.constexpr,
):
    """One row of logits: its statistics, and its gradient, in its place or elsewhere.

    row_length: vocab rounded up to whole vectors; the columns between hold nothing.
    WANT_ENTROPY: with WANT_GRADIENT, the entropy pulls too.
    NARROW: the gradient takes the logits' place with elements half as wide as theirs.
    ON_CHIP: BLOCK covers the row, which is read once instead of twice.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride_logits
    gradient_ptr += row * stride_gradient
    columns = tl.arange(0, BLOCK)

    # A label outside these columns belongs to another shard of the vocabulary: its logit is 0 here.
    label = tl.load(label_ptr + row)
    here = (label >= 0) & (label < vocab)
    label_logit = tl.load(logits_ptr + label, mask=here, other=0.0)
    label_logit = finish(label_logit, label, here, bias_ptr, softcap, HAS_BIAS, HAS_SOFTCAP)[0]
    label_logit = tl.where(here, label_logit, 0.0)

    if ON_CHIP:
        inside = columns < vocab
        x = tl.load(logits_ptr + columns, mask=columns < row_length, other=0.0)
        x, slope = finish(x, columns, inside, bias_ptr, softcap, HAS_BIAS, HAS_SOFTCAP)
        top = tl.max(tl.where(inside, x, float("-inf")), 0)
        total = tl.sum(tl.where(inside, tl.exp(x - top), 0.0), 0)
        logit_sum = tl.where(inside, x, 0.0)
        if WANT_ENTROPY:
            below = tl.maximum(x - top, FLOOR)
            below = tl.sum(tl.where(inside, tl.exp(x - top) * below, 0.0), 0)
    else:
        # Every lane keeps its own running maximum and sum; they meet once, at the end.
        largest = tl.full([BLOCK], LOWEST, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        logit_sum = tl.zeros([BLOCK], tl.float32)
        if WANT_ENTROPY:
            below = tl.zeros([BLOCK], tl.float32)  # sum of exp(x - largest) (x - largest)
        for start in range(0, row_length, BLOCK):
            offsets = start + columns
            inside = offsets < vocab
            x = tl.load(logits_ptr + offsets, mask=offsets < row_length, other=0.0)
            x = finish(x, offsets, inside, bias_ptr, softcap, HAS_BIAS, HAS_SOFTCAP)[0]
            if WANT_SUM:
                logit_sum += tl.where(inside, x, 0.0)
            x = tl.where(inside, x, float("-inf"))
            higher = tl.maximum(largest, x)
            if WANT_ENTROPY:
                fall = largest - higher
                below = tl.exp(fall) * (below + fall * total)
                below += tl.exp(x - higher) * tl.maximum(x - higher, FLOOR)
            total = total * tl.exp(largest - higher) + tl.exp(x - higher)
            largest = higher
        top = tl.max(largest, 0)
        if WANT_ENTROPY:
            fall = largest - top
            below = tl.sum(tl.exp(fall) * (below + fall * total), 0)
        total = tl.sum(total * tl.exp(largest - top), 0)
    log_total = tl.log(total)
    lse = top + log_total
    tl.store(lse_ptr + row, lse)
    # lse - label_logit would round a confident token's small loss like its large lse.
    tl.store(nll_ptr + row, (top - label_logit) + log_total)
    if WANT_SUM:
        tl.store(logit_sum_ptr + row, tl.sum(logit_sum, 0))
    if WANT_ENTROPY:
        # Both log sum_v exp(x_v - top) and the mean of top - x_v are positive.
        mean_below = below / total
        tl.store(entropy_ptr + row, log_total - mean_below)

    if WANT_GRADIENT:
        on_exponential = tl.load(on_probability_ptr + row) * (1.0 + 2.0 * z_loss * lse) / total
        on_label = tl.load(on_label_ptr + row)
        if PULLS_LOGITS:
            on_logit = tl.load(on_logit_ptr + row)
        if WANT_ENTROPY:
            on_surprise = tl.load(on_entropy_ptr + row) / total
        for start in range(0, BLOCK if ON_CHIP else row_length, BLOCK):
            offsets = start + columns
            if not ON_CHIP:
                inside = offsets < vocab
                x = tl.load(logits_ptr + offsets, mask=offsets < row_length, other=0.0)
                x, slope = finish(x, offsets, inside, bias_ptr, softcap, HAS_BIAS, HAS_SOFTCAP)
            if NARROW:
                # Block j of the gradient covers half of block j // 2 of the logits. All threads
                # must have read that, and block 0 its own, before one of them writes.
                tl.debug_barrier()
            factor = on_exponential
            if WANT_ENTROPY:
                factor -= on_surprise * (tl.maximum(x - top, FLOOR) - mean_below)  # log p_v + H
            gradient = factor * tl.exp(x - top) + tl.where(offsets == label, on_label, 0.0)
            if PULLS_LOGITS:
                gradient += on_logit
            gradient = (gradient * slope).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + offsets, gradient, mask=offsets < row_length)


def tile(vocab: int, plain: bool) -> dict[str, Any]:
    """Columns a step and warps a row, and whether a row stays in registers between its two uses.

    It does where that compiles without spills on all of sm_80, sm_90, sm_100 and gfx942: up to 64
    logits a thread on NVIDIA GPUs, half as many on AMD's with their wider warps.

    Args:
        plain: neither bias nor soft cap nor label smoothing nor entropy, which need registers too.
    """
    block = triton.next_power_of_2(vocab)
    if block <= (32_768 if plain else 16_384):
        return {"BLOCK": block, "ON_CHIP": True, "num_warps": max(block // 2048, 4)}
    return {"BLOCK": 4096, "ON_CHIP": False, "num_warps": 8}


def row_pass(
    logits: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    statistics: Statistics,
    pull: Pull | None,
    gradient: Tensor,
) -> None:
    """See `chunks.RowPass`. Logits are float32, the gradient may be narrower.

    Raises:
        ValueError: the tensors are on a CPU and Triton was not told to interpret.
        TypeError: the logits are float64, which no GPU kernel here computes in.
    """
    require_launchable("logits", logits)
    if logits.dtype != torch.float32:
        raise TypeError(f"hidden is {logits.dtype}: on a GPU use float32, bfloat16 or float16")
    count, vocab = logits.shape
    has_bias, has_softcap = bias is not None, softcap is not None
    wants_sum, wants_entropy = (x.numel() > 0 for x in (statistics.logit_sum, statistics.entropy))
    pulls_logits = pull is not None and pull.on_logit is not None
    plain = not (has_bias or has_softcap or wants_sum or wants_entropy or pulls_logits)
    if pull is None:
        gradient = logits  # not written to
    in_place = gradient.data_ptr() == logits.data_ptr()
    with torch.cuda.device_of(logits):
        _row_kernel[(count,)](
            logits_ptr=logits,
            gradient_ptr=gradient,
            stride_logits=logits.stride(0),
            stride_gradient=gradient.stride(0),
            label_ptr=labels,
            bias_ptr=None if bias is None else bias.contiguous(),
            lse_ptr=statistics.lse,
            nll_ptr=statistics.nll,
            logit_sum_ptr=statistics.logit_sum,
            entropy_ptr=statistics.entropy if wants_entropy else None,
            on_probability_ptr=None if pull is None else pull.on_probability,
            on_label_ptr=None if pull is None else pull.on_label,
            on_logit_ptr=None if pull is None else pull.on_logit,
            on_entropy_ptr=None if pull is None else pull.on_entropy,
            vocab=vocab,
            row_length=triton.cdiv(vocab, ROW_ALIGNMENT) * ROW_ALIGNMENT,
            softcap=1.0 if softcap is None else softcap,
            z_loss=0.0 if pull is None else pull.z_loss,
            HAS_BIAS=has_bias,
            HAS_SOFTCAP=has_softcap,
            WANT_SUM=wants_sum,
            WANT_ENTROPY=wants_entropy,
            WANT_GRADIENT=pull is not None,
            PULLS_LOGITS=pulls_logits,
            NARROW=in_place and gradient.dtype != logits.dtype,
            enable_fp_fusion=True,
            **tile(vocab, plain),
        )
