"""The pass over pairs of rows in Triton: divergence and gradient of one token per program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...target import require_launchable
from ..chunks import ROW_ALIGNMENT
from ..kernel import LOWEST, finish
from .divergence import Head

# Columns a step, and warps a row: free of spills on all of sm_80, sm_90, sm_100 and gfx942, and
# with some 60 registers 32 warps on a multiprocessor of sm_90. 4,096 columns take 97 and leave 16.
BLOCK, NUM_WARPS = 2048, 8


@triton.jit
def _logits(
    row_ptr,
    offsets,
    vocab,
    row_length,
    bias_ptr,
    softcap,
    inverse_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Logits over temperature, lowest outside the vocabulary, and d logit / d product."""
    inside = offsets < vocab
    x = tl.load(row_ptr + offsets, mask=offsets < row_length, other=0.0)
    x, slope = finish(x, offsets, inside, bias_ptr, softcap, HAS_BIAS, HAS_SOFTCAP)
    return tl.where(inside, x * inverse_temperature, LOWEST), slope


@triton.jit
def _add(largest, total, x):
    """Each lane's own running maximum, and sum of exponentials relative to it."""
    higher = tl.maximum(largest, x)
    return higher, total * tl.exp(largest - higher) + tl.exp(x - higher)


@triton.jit
def _meet(largest, total):
    """Maximum, and logarithm of the sum relative to it, over all lanes."""
    top = tl.max(largest, 0)
    return top, tl.log(tl.sum(total * tl.exp(largest - top), 0))


@triton.jit
def _excess(r):
    """r + exp(-r) - 1 for |r| < 1: its series, where the exponential would cancel."""
    series = 1.0 / 3628800.0
    series = 1.0 / 362880.0 - r * series
    series = 1.0 / 40320.0 - r * series
    series = 1.0 / 5040.0 - r * series
    series = 1.0 / 720.0 - r * series
    series = 1.0 / 120.0 - r * series
    series = 1.0 / 24.0 - r * series
    series = 1.0 / 6.0 - r * series
    series = 0.5 - r * series
    return r * r * series


@triton.jit
def _pair_kernel(
    logits_ptr,
    teacher_ptr,
    gradient_ptr,
    stride_logits,
    stride_teacher,
    stride_gradient,
    bias_ptr,
    teacher_bias_ptr,
    divergence_ptr,
    pull_ptr,
    vocab,
    row_length,
    softcap,
    teacher_softcap,
    temperature,
    inverse_temperature,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_BIAS: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    NARROW: tl.constexpr,
):
    """One row of each: log-sum-exps in the first pass, divergence and gradient in the second.

    row_length: vocab rounded up to whole vectors; the columns between hold nothing.
    NARROW: the gradient takes the student's place with elements half as wide as its logits.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride_logits
    teacher_ptr += row * stride_teacher
    gradient_ptr += row * stride_gradient
    columns = tl.arange(0, BLOCK)

    a_largest = tl.full([BLOCK], LOWEST, tl.float32)
    b_largest = tl.full([BLOCK], LOWEST, tl.float32)
    a_total = tl.zeros([BLOCK], tl.float32)
    b_total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, row_length, BLOCK):
        offsets = start + columns
        a = _logits(
            logits_ptr, offsets, vocab, row_length, bias_ptr, softcap, inverse_temperature,
            HAS_BIAS, HAS_SOFTCAP,
        )[0]  # fmt: skip
        b = _logits(
            teacher_ptr, offsets, vocab, row_length, teacher_bias_ptr, teacher_softcap,
            inverse_temperature, TEACHER_HAS_BIAS, TEACHER_HAS_SOFTCAP,
        )[0]  # fmt: skip
        a_largest, a_total = _add(a_largest, a_total, a)
        b_largest, b_total = _add(b_largest, b_total, b)
    a_top, a_log_total = _meet(a_largest, a_total)
    b_top, b_log_total = _meet(b_largest, b_total)

    divergence = tl.zeros([BLOCK], tl.float32)
    if WANT_GRADIENT:
        pull = tl.load(pull_ptr + row) * temperature
    for start in range(0, row_length, BLOCK):
        offsets = start + columns
        a, slope = _logits(
            logits_ptr, offsets, vocab, row_length, bias_ptr, softcap, inverse_temperature,
            HAS_BIAS, HAS_SOFTCAP,
        )  # fmt: skip
        b = _logits(
            teacher_ptr, offsets, vocab, row_length, teacher_bias_ptr, teacher_softcap,
            inverse_temperature, TEACHER_HAS_BIAS, TEACHER_HAS_SOFTCAP,
        )[0]  # fmt: skip
        log_q = (a - a_top) - a_log_total
        log_p = (b - b_top) - b_log_total
        q, p = tl.exp(log_q), tl.exp(log_p)
        ratio = log_p - log_q
        # Far from 0 as p (r - 1) + q: exp(-r) may overflow, and r is infinite where q is 0. A token
        # that the teacher excludes has p r = 0, also where r is no number.
        far = tl.where(p > 0.0, p * (ratio - 1.0), 0.0) + q
        divergence += tl.where(tl.abs(ratio) < 1.0, p * _excess(ratio), far)
        if WANT_GRADIENT:
            if NARROW:
                # Block j of the gradient covers half of block j // 2 of the logits. All threads
                # must have read that, and block 0 its own, before one of them writes.
                tl.debug_barrier()
            gradient = (pull * (q - p) * slope).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + offsets, gradient, mask=offsets < row_length)
    tl.store(divergence_ptr + row, temperature * temperature * tl.sum(divergence, 0))


def pair_pass(
    logits: Tensor,
    teacher_logits: Tensor,
    student: Head,
    teacher: Head,
    temperature: float,
    divergence: Tensor,
    pull: Tensor | None,
    gradient: Tensor,
) -> None:
    """See `divergence.PairPass`. Logits are float32, the gradient may be narrower.

    Raises:
        ValueError: the tensors are on a CPU and Triton was not told to interpret.
        TypeError: the logits are float64, which no GPU kernel here computes in.
    """
    require_launchable("logits", logits)
    if logits.dtype != torch.float32:
        raise TypeError(f"hidden is {logits.dtype}: on a GPU use float32, bfloat16 or float16")
    count, vocab = logits.shape
    if pull is None:
        gradient = logits  # not written to
    in_place = gradient.data_ptr() == logits.data_ptr()
    with torch.cuda.device_of(logits):
        _pair_kernel[(count,)](
            logits_ptr=logits,
            teacher_ptr=teacher_logits,
            gradient_ptr=gradient,
            stride_logits=logits.stride(0),
            stride_teacher=teacher_logits.stride(0),
            stride_gradient=gradient.stride(0),
            bias_ptr=None if student.bias is None else student.bias.contiguous(),
            teacher_bias_ptr=None if teacher.bias is None else teacher.bias.contiguous(),
            divergence_ptr=divergence,
            pull_ptr=pull,
            vocab=vocab,
            row_length=triton.cdiv(vocab, ROW_ALIGNMENT) * ROW_ALIGNMENT,
            softcap=1.0 if student.softcap is None else student.softcap,
            teacher_softcap=1.0 if teacher.softcap is None else teacher.softcap,
            temperature=temperature,
            inverse_temperature=1.0 / temperature,  # rounded once
            BLOCK=min(BLOCK, triton.next_power_of_2(vocab)),
            HAS_BIAS=student.bias is not None,
            HAS_SOFTCAP=student.softcap is not None,
            TEACHER_HAS_BIAS=teacher.bias is not None,
            TEACHER_HAS_SOFTCAP=teacher.softcap is not None,
            WANT_GRADIENT=pull is not None,
            NARROW=in_place and gradient.dtype != logits.dtype,
            enable_fp_fusion=True,
            num_warps=NUM_WARPS,
        )
