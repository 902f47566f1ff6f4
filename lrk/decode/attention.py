"""Attention by a position map: a pass of attention for each range of keys, merged by their lse."""

from functools import reduce

import torch
from torch import Tensor

from lrk.decode.position_maps import Pass, PositionMap
from lrk.kernels.attention import attention, merge_attention
from lrk.kernels.rope import rope


def mapped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position_map: PositionMap,
    inv_freq: Tensor,
    attention_scaling: float = 1.0,
    scale: float | None = None,
) -> Tensor:
    """Causal attention of one document, rotated by the positions of a map. Differentiable.

    Args:
        q: (B, H, Sq, D) the document's last tokens, not rotated.
        k: (B, Hk, Sk, D) all of its tokens, not rotated; `v` likewise.
        inv_freq: (R/2,) frequencies or phase increments, as `rope` takes them.
        attention_scaling: factor of the rotated dimensions, as in `rope`.
        scale: factor of the scores, default `D ** -0.5`.

    Returns:
        (B, H, Sq, D) in the dtype of `q`.
    """
    first, total = k.shape[2] - q.shape[2], k.shape[2]
    outputs = []
    for queries, passes in position_map.groups(first, total):
        here = q[:, :, queries.start - first : queries.stop - first]
        parts = [
            _attend(here, k, v, queries, each, inv_freq, attention_scaling, scale)
            for each in passes
        ]
        outputs.append(reduce(lambda one, two: merge_attention(*one, *two), parts)[0])
    return torch.cat(outputs, dim=2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: range,
    part: Pass,
    inv_freq: Tensor,
    attention_scaling: float,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    keys = slice(part.keys.start, part.keys.stop)
    out, lse = attention(
        _rotated(q, part.query_positions(_indices(queries, q)), inv_freq, attention_scaling),
        _rotated(
            k[:, :, keys], part.key_positions(_indices(part.keys, k)), inv_freq, attention_scaling
        ),
        v[:, :, keys],
        causal=part.causal,
        q_offset=queries.start - part.shift - part.keys.start,
        window=part.window,
        scale=scale,
        return_lse=True,
    )
    return out, lse


def _rotated(x: Tensor, positions: Tensor, inv_freq: Tensor, attention_scaling: float) -> Tensor:
    """`rope` of one tensor: the other has no heads."""
    return rope(x, x[:, :0], positions[None], inv_freq, attention_scaling)[0]


def _indices(tokens: range, like: Tensor) -> Tensor:
    return torch.arange(tokens.start, tokens.stop, device=like.device)
