"""The specification of attention, in plain PyTorch."""

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..argument_types import check_dense_if_given


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    kv_lengths: Tensor | None = None,
    q_offset: int | Tensor | None = None,
    window: int | None = None,
    window_position_ids: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention with every score materialised; arguments and results as in `op.attention`.

    Runs in the dtype of its inputs as eager transformers does: products in that dtype, the softmax
    in float32. Float64 inputs are float64 throughout.
    """
    check_dense_if_given(cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k, kv_lengths=kv_lengths)
    visible = _visible(
        q, k, causal, cu_seqlens, cu_seqlens_k, kv_lengths, q_offset, window, window_position_ids
    )
    k, v = (repeat(x, "b h s d -> b (h g) s d", g=q.shape[1] // k.shape[1]) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    hidden = ~rearrange(visible, "b q k -> b 1 q k")
    without_keys = hidden.all(-1)

    # A row without keys has no softmax: give it any scores here, and its own results below.
    scores = scores.masked_fill(hidden & ~without_keys[..., None], float("-inf"))
    lse = scores.logsumexp(-1) if k.shape[2] else scores.sum(-1)
    out = torch.exp(scores - lse[..., None]).to(v.dtype) @ v
    out = out.masked_fill(without_keys[..., None], 0.0)
    lse = lse.masked_fill(without_keys, float("-inf"))
    return (out, lse) if return_lse else out


def _visible(
    q: Tensor,
    k: Tensor,
    causal: bool,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    kv_lengths: Tensor | None,
    q_offset: int | Tensor | None,
    window: int | None,
    window_position_ids: Tensor | None,
) -> Tensor:
    """(B, Sq, Sk) bool: whether query i of a row sees its key j."""
    (batch, _, q_length, _), k_length = q.shape, k.shape[2]
    index_q = torch.arange(q_length, device=q.device).expand(batch, -1)
    index_k = torch.arange(k_length, device=q.device).expand(batch, -1)

    if cu_seqlens is None:
        lengths = torch.full((batch,), k_length, device=q.device)
        lengths = lengths if kv_lengths is None else kv_lengths.long()
        offset = lengths - q_length if q_offset is None else torch.as_tensor(q_offset)
        index_q = index_q + offset.to(q.device).expand(batch)[:, None]
        visible = (index_k < lengths[:, None])[:, None, :].expand(-1, q_length, -1)
    else:
        if cu_seqlens_k is None:
            cu_seqlens_k = cu_seqlens
        document_q, start_q = _documents(cu_seqlens, batch, q_length)
        document_k, _ = _documents(cu_seqlens_k, batch, k_length)
        visible = document_q[:, :, None] == document_k[:, None, :]
        # The last query of a document sits at its last key.
        offset = (cu_seqlens_k.diff() - cu_seqlens.diff())[document_q]
        first_key = cu_seqlens_k[document_q] - k_length * torch.arange(batch)[:, None].to(q.device)
        index_q = index_q - start_q + offset + first_key

    if causal:
        visible = visible & (index_k[:, None, :] <= index_q[:, :, None])
    if window is not None and window_position_ids is not None and k_length:
        positions = window_position_ids.expand(batch, -1)
        at_query = positions.gather(1, index_q.clamp(0, k_length - 1))
        visible = visible & (at_query[:, :, None] - positions[:, None, :] < window)
    elif window is not None:
        visible = visible & (index_q[:, :, None] - index_k[:, None, :] < window)
    return visible


def _documents(cu_seqlens: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """(batch, length) document of each token and the row-local index at which it starts."""
    token = torch.arange(batch * length, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:].long(), token, right=True)
    start = cu_seqlens.long()[document]
    document, start, token = (x.view(batch, length) for x in (document, start, token))
    return document, start - (token - torch.arange(length, device=token.device))
