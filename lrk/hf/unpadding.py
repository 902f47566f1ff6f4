"""Rows with holes: padding between tokens, as where `generate` goes on behind right padding.

Boundaries of documents say what is before a text and behind it, not what is inside. So in such rows
the real tokens are moved to the front, in their order, which is all that causality asks for; the
output moves back. It costs a copy of queries, keys and values in each layer.

Behind a text queries of padding see all its keys, as in the stock model: `generate` takes the next
token from there if a prompt ends in padding. Before and inside a text the output of padding is 0,
as it is with FlashAttention.

What it takes is one integer for each key: 1 if it is real, and 2 more if it is one of the queries.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_REAL, _QUERY = 1, 2


def marks(real: Tensor, is_query: Tensor) -> Tensor:
    """(B, 1, 1, Sk) int32, from (B, Sk) bool and (Sk,) bool; the queries follow each other.

    transformers passes a four-dimensional tensor through unchanged wherever it takes a mask.
    """
    return (_REAL * real.int() + _QUERY * is_query.int())[:, None, None].to(torch.int32)


def is_marks(attention_mask: Tensor) -> bool:
    """Whether `marks` made this mask."""
    shape = attention_mask.shape
    return len(shape) == 4 and shape[1:3] == (1, 1) and attention_mask.dtype == torch.int32


def real_keys(marks: Tensor) -> Tensor:
    """(B, Sk) bool, the keys that are not padding."""
    return (marks[:, 0, 0] & _REAL).bool()


def first_query(marks: Tensor) -> Tensor:
    """() int64, the key that is the first of the queries."""
    return (marks[0, 0, 0] >= _QUERY).int().argmax()


def real_queries(marks: Tensor, length: int) -> Tensor:
    """(B, Sq) bool, the queries that are not padding."""
    return real_keys(marks).index_select(1, _query_places(marks, length))


def _query_places(marks: Tensor, length: int) -> Tensor:
    """(Sq,) int64, the keys that are the queries."""
    return first_query(marks) + torch.arange(length, device=marks.device)


class Unpadding(NamedTuple):
    """How the tokens of each row are ordered, the real ones first."""

    queries: Tensor
    """(B, Sq) int64, places of the queries: real, behind all real keys, others."""
    keys: Tensor
    """(B, Sk) int64, places of the keys: real, those of the queries behind them, others."""
    kv_lengths: Tensor
    """(B,) int64, how many keys are real."""
    q_offset: Tensor
    """(B,) int64, how many real keys are before the first query."""
    answered: Tensor
    """(B, Sq) bool, before they are ordered: queries that are real, or behind all real keys."""

    @classmethod
    def of(cls, marks: Tensor, length: int) -> "Unpadding":
        """From the marks of a batch with so many queries a row."""
        real, places = real_keys(marks), _query_places(marks, length)
        is_query = torch.zeros_like(real[0]).index_fill(0, places, True)
        kv_lengths = real.sum(dim=1)
        q_offset = kv_lengths - (real & is_query).sum(dim=1)
        behind = is_query & (real.cumsum(dim=1) == kv_lengths[:, None])
        rank = 2 - real.int() - (real | behind).int()
        of_queries = rank.index_select(1, places)
        queries, keys = (torch.argsort(each, dim=1, stable=True) for each in (of_queries, rank))
        return cls(queries, keys, kv_lengths, q_offset, of_queries < 2)

    def rising(self, position_ids: Tensor | None) -> Tensor:
        """(B, Sk) int64, by which a window counts the ordered keys; it rises from 0.

        From one token to the next it rises as their places do, as transformers counts, or as their
        positions do where these skip more.

        Args:
            position_ids: (B or 1, Sk); None where they are not known.
        """
        steps = self.keys.diff(dim=1).clamp(min=1)
        if position_ids is not None:
            positions = position_ids.expand_as(self.keys).gather(1, self.keys)
            steps = torch.maximum(steps, positions.diff(dim=1))
        return torch.nn.functional.pad(steps.cumsum(dim=1), (1, 0))


def ordered(x: Tensor, places: Tensor) -> Tensor:
    """(B, H, S, D) with the tokens in another order, (B, S)."""
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
