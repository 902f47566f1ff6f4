"""The cases in which attention has to be right: what a query sees, head dimensions and dtypes."""

from collections.abc import Callable, Iterator
from itertools import cycle, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.device import DEVICE
from bench.gpu.sizes import Heads, Sizes


class AttentionCase(NamedTuple):
    """A call on random tensors of a shape."""

    variant: str
    dtype: torch.dtype
    head_dim: int
    heads: Heads
    batch: int
    q_length: int
    k_length: int

    @property
    def shape(self) -> dict[str, int]:
        return {
            "B": self.batch,
            "H": self.heads.q,
            "Hk": self.heads.k,
            "S": self.q_length,
            "Sk": self.k_length,
            "D": self.head_dim,
        }

    def arguments(self, device: torch.device = DEVICE) -> dict[str, Any]:
        """What says what is visible, and the softcap."""
        values = VARIANTS[self.variant](self)
        return {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }


def _ends(case: AttentionCase) -> Tensor:
    """Documents of odd lengths, one of them empty, in every row."""
    s = case.q_length
    inner = torch.tensor([s // 3, s // 3, min(s // 2 + 3, s), s], dtype=torch.int32)
    rows = s * torch.arange(case.batch, dtype=torch.int32)[:, None]
    return torch.cat([torch.zeros(1, dtype=torch.int32), (inner + rows).flatten()])


def _longer_keys(case: AttentionCase) -> Tensor:
    """Ends of the documents of the keys: those of the queries and more, 7 without a query."""
    s, extra = case.q_length, case.k_length - case.q_length
    half = extra // 2
    inner = torch.tensor(
        [s // 3 + half - min(half, 7), s // 3 + half, min(s // 2 + 3, s) + half, s + extra]
    )
    rows = case.k_length * torch.arange(case.batch)[:, None]
    return torch.cat([torch.zeros(1, dtype=torch.int64), (inner + rows).flatten()])


def _positions(case: AttentionCase) -> Tensor:
    return torch.randint(1, 4, (1, case.k_length)).cumsum(1)


def _by_position(case: AttentionCase) -> dict[str, Any]:
    return {"window": case.k_length // 3, "window_position_ids": _positions(case)}


def _key_lengths(case: AttentionCase) -> Tensor:
    return torch.randint(case.k_length // 2, case.k_length + 1, (case.batch,))


VARIANTS: dict[str, Callable[[AttentionCase], dict[str, Any]]] = {
    "causal": lambda case: {},
    "full": lambda case: {"causal": False},
    "documents": lambda case: {"cu_seqlens": _ends(case)},
    "window": lambda case: {"window": max(case.k_length // 7, 1)},
    "window by position": _by_position,
    "documents, window by position": lambda case: {
        "cu_seqlens": _ends(case),
        **_by_position(case),
    },
    "documents with longer keys": lambda case: {
        "cu_seqlens": _ends(case).long(),
        "cu_seqlens_k": _longer_keys(case),
    },
    "softcap": lambda case: {"softcap": 20.0},
    "kv_lengths": lambda case: {"kv_lengths": _key_lengths(case)},
    "q_offset": lambda case: {
        "q_offset": torch.randint(-3, case.k_length, (case.batch,), dtype=torch.int32)
    },
    "cached": lambda case: {},
}
_USUAL = ("causal", "documents")
_LONGER_KEYS = {"documents with longer keys", "kv_lengths", "q_offset", "cached"}
_DECODING = ("cached", "documents with longer keys", "kv_lengths", "window", "softcap")


def attention_cases(sizes: Sizes) -> Iterator[AttentionCase]:
    """All variants in bf16 at the main head dimensions, the usual ones in every other kind.

    Last few queries on many keys, which have kernels of their own.
    """
    groups = cycle(sizes.groups)

    def case(variant: str, dtype: torch.dtype, head_dim: int, s: int) -> AttentionCase:
        keys = s + s // 4 + 1 if variant in _LONGER_KEYS else s
        return AttentionCase(variant, dtype, head_dim, next(groups), sizes.batch, s, keys)

    for head_dim, variant in product(sizes.main_dims, VARIANTS):
        yield case(variant, torch.bfloat16, head_dim, sizes.short)
    for (dtype, head_dim), variant in product(sizes.other_kinds, _USUAL):
        yield case(variant, dtype, head_dim, sizes.short)
    for s, variant in product(sizes.odd, _USUAL):
        yield case(variant, torch.bfloat16, sizes.main_dims[0], s)
    for queries, head_dim, variant in product((1, 5), sizes.main_dims, _DECODING):
        what = torch.bfloat16, head_dim, next(groups), sizes.batch, queries, sizes.long
        yield AttentionCase(variant, *what)


def random_heads(batch: int, heads: int, length: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """(B, H, S, D) on the device, laid out as by transformers: heads inside a token."""
    shape = batch, length, heads, head_dim
    return torch.randn(shape, device=DEVICE, dtype=dtype).transpose(1, 2)
