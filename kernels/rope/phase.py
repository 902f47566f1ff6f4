"""Angles as exact integers: 64-bit fixed-point fractions of a turn.

A rotary angle is `position * inv_freq` radians, and only its fraction of a turn matters. With
`F = round(inv_freq / (2 pi) * 2^64)` the product `position * F mod 2^64` is that fraction in units
of `2^-64` turns: integer arithmetic that wraps at the whole turn by itself. The only error is the
rounding of `F`, at most half a unit per position: below 4e-10 rad at position `2^31 - 1`, and below
5e-8 rad at `2^38`. A float32 angle is off by 4e-3 rad at position 131,071, a float64 one by 1e-7
rad at `2^31 - 1`.

`F` itself needs more than float64 holds, so it is computed from the bits of `inv_freq`. All of it
runs on the device of `inv_freq` without a synchronisation.
"""

import torch
from torch import Tensor

from ..argument_types import check_dense

# 1 / (2 pi) to 135 binary places, in limbs of 27 bits, least significant first.
_LIMB_BITS = 27
_LIMB_MASK = (1 << _LIMB_BITS) - 1
_INVERSE_TWO_PI = (0x69BB81B, 0x55F47D4, 0x294FE13, 0x6E4E441, 0x145F306)
_FRACTION_BITS = _LIMB_BITS * len(_INVERSE_TWO_PI)
_MANTISSA_BITS = 52


def _shifted(x: Tensor, left: Tensor) -> Tensor:
    """`x * 2^left mod 2^64`, rounded down, for `x >= 0` and `left` of either sign."""
    up = torch.where(left < 64, x << left.clamp(0, 63), 0)
    return torch.where(left >= 0, up, x >> (-left).clamp(0, 63))


def _increments(inv_freq: Tensor) -> Tensor:
    bits = inv_freq.double().view(torch.int64)
    exponent = ((bits >> _MANTISSA_BITS) & 0x7FF) - 1023
    fraction = bits & ((1 << _MANTISSA_BITS) - 1)
    # Zero and subnormal numbers (exponent -1023) are far below one unit: 0.
    mantissa = torch.where(exponent > -1023, fraction | (1 << _MANTISSA_BITS), 0)

    # product = mantissa * floor(2^135 / (2 pi)), schoolbook in limbs: no column exceeds 2^55.
    low, high = mantissa & _LIMB_MASK, mantissa >> _LIMB_BITS
    carry = torch.zeros_like(mantissa)
    product = []
    for low_factor, high_factor in zip((*_INVERSE_TWO_PI, 0), (0, *_INVERSE_TWO_PI), strict=True):
        column = carry + low * low_factor + high * high_factor
        product.append(column & _LIMB_MASK)
        carry = column >> _LIMB_BITS
    product.append(carry)

    # inv_freq / (2 pi) * 2^64 = product * 2^scale. The limbs are disjoint, so the floor of the sum
    # is the sum of the floors; the first bit below the unit rounds.
    scale = exponent - _MANTISSA_BITS - _FRACTION_BITS + 64
    floor, twice_floor = (
        sum(_shifted(limb, shift + _LIMB_BITS * i) for i, limb in enumerate(product))
        for shift in (scale, scale + 1)
    )
    increments = floor + (twice_floor & 1)
    return torch.where(bits < 0, -increments, increments)


@torch.library.custom_op("lrk::phase_increments", mutates_args=())
def _phase_increments(inv_freq: Tensor) -> Tensor:
    if inv_freq.device.type == "cpu" and not inv_freq.isfinite().all():
        raise ValueError(f"inv_freq must be finite, it holds {inv_freq[~inv_freq.isfinite()]}")
    return _increments(inv_freq)


@_phase_increments.register_fake
def _(inv_freq: Tensor) -> Tensor:
    return torch.empty_like(inv_freq, dtype=torch.int64)


def phase_increments(inv_freq: Tensor) -> Tensor:
    """Fractions of a turn per position, as 64-bit fixed point.

    Computed once per model and given to `rope` in place of `inv_freq`, it saves each call the
    conversion. It is an integer tensor, so `model.to(torch.bfloat16)` leaves it alone.

    Args:
        inv_freq: float64 or float32, any shape: radians per position, finite. The given value is
            taken as exact. (float32 frequencies are themselves off: by 3.8e-3 rad at position
            131,071 for theta 5e5.)

    Returns:
        int64, same shape: `round(inv_freq / (2 pi) * 2^64) mod 2^64`, as two's complement.

    Raises:
        TypeError: `inv_freq` is neither float64 nor float32.
        ValueError: a value is infinite or NaN (checked on the CPU only: on a GPU the check would
            be a synchronisation).
    """
    check_dense(inv_freq=inv_freq)
    if inv_freq.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"inv_freq must be float64 or float32, got {inv_freq.dtype}")
    return _phase_increments(inv_freq.detach())
