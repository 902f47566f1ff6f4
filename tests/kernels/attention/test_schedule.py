"""Which programs run together."""

import pytest
import torch

from lrk.kernels.attention.schedule import heads_together


def keys(length: int, heads: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(1, heads, length, 128, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("length", "heads", "together"),
    [
        (8192, 8, 8),  # 8 heads of K and V take 32 MiB
        (8192, 48, 8),
        (8193, 8, 4),
        (39_322, 8, 1),
        (131_072, 8, 1),
        (8192, 7, 7),
        (8193, 14, 7),
        (1, 1, 1),
        (0, 8, 8),
    ],
)
def test_the_cache_holds_what_heads_together_read(length, heads, together):
    assert heads_together(keys(length, heads), heads) == together


def test_wider_numbers_take_more_room():
    assert heads_together(keys(8192, 8, torch.float32), 8) == 4
