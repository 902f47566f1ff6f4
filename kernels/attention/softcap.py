"""Softcapped scores (Gemma 2, arXiv 2408.00118)."""

import triton
import triton.language as tl


@triton.jit
def capped(products, softcap_scale):
    """Scores up to a factor: `q . k` as it is, or `tanh(q . k * scale / softcap)`."""
    if softcap_scale is not None:
        products = _tanh(products * softcap_scale)
    return products


@triton.jit
def _tanh(x):
    """tanh within 1.6e-7 relative; neither backend's own runs in the interpreter.

    From |x| = 0.625 on as `1 - 2 / (exp(2|x|) + 1)`; below, where that cancels, by a polynomial
    fitted at Chebyshev nodes.
    """
    decay = tl.exp2(-2.8853900817779268 * tl.abs(x))
    large = 1.0 - 2.0 * decay / (1.0 + decay)
    y = x * x
    series = 0.021003641188144684 - 0.006104947999119759 * y
    series = 0.13332782685756683 + y * (-0.05385249853134155 + y * series)
    series = y * (-0.333333283662796 + y * series)
    return tl.where(y < 0.390625, x + x * series, tl.where(x < 0, -large, large))
