"""Cosine and sine at every position and base, against integer arithmetic of 400 bits."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from lrk.kernels.rope import phase_increments, rope, rope_reference, rope_triton

BITS = 400
with mpmath.workprec(BITS + 64):
    INVERSE_TWO_PI = int(mpmath.floor(mpmath.ldexp(1 / (2 * mpmath.pi), BITS)))

THETAS = [1e4, 5e5, 1e6, 131.5e6, 1e9]
BOUND = 1.0e-7  # asked for: 1.5e-7


def turns(inv_freq: float, position: int) -> int:
    """`position * inv_freq / (2 pi)` modulo 1, times 2^BITS: exact for the float64 as given."""
    numerator, denominator = inv_freq.as_integer_ratio()
    return position * numerator * INVERSE_TWO_PI // denominator % (1 << BITS)


def true_cos_sin(position_ids: Tensor, inv_freq: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(S, R/2) each, within 1e-15."""
    fraction = [
        [(turns(f, p) >> (BITS - 64)) / 2**64 for f in inv_freq.tolist()]
        for p in position_ids.tolist()
    ]
    angle = 2 * math.pi * np.array(fraction)
    return np.cos(angle), np.sin(angle)


def cos_sin(implementation, position_ids: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """What the implementation multiplies by: the vectors (1, 0) come out as (cos, sin)."""
    half, length = inv_freq.numel(), position_ids.numel()
    x = torch.zeros(1, 1, length, 2 * half, device=inv_freq.device)
    x[..., :half] = 1
    out, _ = implementation(x, x[:, :0], position_ids[None], inv_freq)
    return out[0, 0].split(half, dim=-1)


def positions(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    powers = 2 ** torch.arange(31)
    ids = torch.cat(
        [
            torch.randint(2**31, (160,), generator=generator),
            torch.randint(131_072, (40,), generator=generator),
            torch.tensor([0, 131_071, 2**31 - 1]),
            powers,
            powers - 1,
        ]
    )
    return ids.to(device)


@pytest.mark.parametrize("implementation", [rope, rope_triton])
@pytest.mark.parametrize("theta", THETAS)
def test_over_the_whole_range(implementation, theta, device):
    inv_freq = theta ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    ids = positions(device)
    truth = true_cos_sin(ids, inv_freq)
    for value, true in zip(cos_sin(implementation, ids, inv_freq.to(device)), truth, strict=True):
        assert np.abs(value.double().cpu().numpy() - true).max() <= BOUND


@pytest.mark.parametrize("implementation", [rope, rope_triton])
@pytest.mark.parametrize("theta", THETAS)
def test_beyond_32_bits(implementation, theta, device):
    """Up to 2^38 as promised, 1.5e-7; the rounding of an increment grows with the position."""
    inv_freq = theta ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    ids = torch.tensor([2**31, 2**32 + 5, 2**37 + 1, 2**38 - 1, 2**38], device=device)
    truth = true_cos_sin(ids, inv_freq)
    for value, true in zip(cos_sin(implementation, ids, inv_freq.to(device)), truth, strict=True):
        assert np.abs(value.double().cpu().numpy() - true).max() <= 1.5e-7


@pytest.mark.parametrize("implementation", [rope, rope_triton])
def test_around_every_eighth_of_a_turn(implementation, device):
    """Where signs change and polynomials are at the end of their range."""
    ids = torch.arange(4096, device=device)
    inv_freq = torch.tensor([2 * math.pi / 4096, 2 * math.pi / 4096 * (1 + 1e-9)])
    truth = true_cos_sin(ids, inv_freq.double())
    values = cos_sin(implementation, ids, inv_freq.to(device))
    for value, true in zip(values, truth, strict=True):
        assert np.abs(value.double().cpu().numpy() - true).max() <= BOUND


def test_reference_in_float64(device):
    """The specification itself: exact by increments, off by a float64 product by frequencies."""
    inv_freq = 5e5 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    ids = positions(device)
    cos, sin = true_cos_sin(ids, inv_freq)
    x = torch.zeros(1, 1, ids.numel(), 128, dtype=torch.float64, device=device)
    x[..., :64] = 1
    for given, bound in ((phase_increments(inv_freq), 4e-10), (inv_freq, 4e-7)):
        out, _ = rope_reference(x, x, ids[None], given.to(device))
        out = out[0, 0].cpu().numpy()
        assert np.abs(out[:, :64] - cos).max() <= bound
        assert np.abs(out[:, 64:] - sin).max() <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_phase_increments_are_rounded_exactly(dtype, device):
    generator = torch.Generator().manual_seed(1)
    mantissa = torch.rand(2000, dtype=torch.float64, generator=generator) + 0.5
    exponent = torch.randint(-70, 60, (2000,), generator=generator)
    sign = torch.randint(2, (2000,), generator=generator) * 2 - 1
    special = torch.tensor([0.0, -0.0, 1.0, 2 * math.pi, 5e-324, 1e-40, 1e-300, 2.0**-66])
    inv_freq = torch.cat([torch.ldexp(mantissa, exponent) * sign, special.double()]).to(dtype)
    exact = []
    for f in inv_freq.tolist():
        numerator, denominator = f.as_integer_ratio()
        scaled = abs(numerator) * INVERSE_TWO_PI * 2 // (denominator << (BITS - 64))
        exact.append((-1 if f < 0 else 1) * ((scaled + 1) // 2) % 2**64)
    ours = phase_increments(inv_freq.to(device)).tolist()
    assert [value % 2**64 for value in ours] == exact


def test_stock_tables_are_not_that_good():
    """The figures that the documentation quotes for float32 angles; the harness can see errors."""
    inv_freq = 5e5 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    ids = torch.tensor([131_071])
    cos, _ = true_cos_sin(ids, inv_freq)
    stock = (ids[:, None].float() * inv_freq.float()).cos().double().numpy()
    assert np.abs(stock - cos).max() > 1e-3
