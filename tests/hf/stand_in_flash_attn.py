"""The packages of FlashAttention in place of which a CPU computes what they are documented to.

Windows reach to the left and the right of a query's own key, both ends included; a document's last
query is aligned with its last key; a query without keys gives 0. Dropout is not computed.
"""

import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils, utils

CALLS: list[dict[str, Any]] = []
"""What was handed over, since `install`."""


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    package: str = "",
) -> Tensor:
    """(B, Sq, Hq, D), of (B, Sq, Hq, D), (B, Sk, Hk, D) and (B, Sk, Hk, D)."""
    options = (softmax_scale, causal, window_size, softcap)
    if torch.compiler.is_compiling():
        return _in_a_graph(q, k, v, None, None, softmax_scale, causal)
    _record(
        package=package,
        cu_seqlens_q=None,
        dropout_p=dropout_p,
        deterministic=deterministic,
        options=options,
    )
    return torch.stack([_document(*row, *options) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    package: str = "",
) -> Tensor:
    """(T, Hq, D), of T queries (T, Hq, D) of all documents."""
    options = (softmax_scale, causal, window_size, softcap)
    if torch.compiler.is_compiling():
        return _in_a_graph(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal)
    _record(
        package=package,
        cu_seqlens_q=cu_seqlens_q.tolist(),
        cu_seqlens_k=cu_seqlens_k.tolist(),
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        dropout_p=dropout_p,
        deterministic=deterministic,
        options=options,
    )
    for ends, longest, tokens in (
        (cu_seqlens_q, max_seqlen_q, len(q)),
        (cu_seqlens_k, max_seqlen_k, len(k)),
    ):
        assert ends.dtype == torch.int32
        assert ends.is_contiguous()
        assert (ends[0], ends[-1]) == (0, tokens)
        assert type(longest) is int
        assert ends.diff().max() <= longest
    # FlashAttention-2 then folds groups of heads into queries, one a document.
    assert max_seqlen_q > 1 or len(cu_seqlens_q) == len(q) + 1
    lengths = (cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist())
    parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
    return torch.cat([_document(*part, *options) for part in parts])


@torch.library.custom_op("lrk_tests::flash_attn", mutates_args=())
def _in_a_graph(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    scale: float | None,
    causal: bool,
) -> Tensor:
    """An operation, as the packages' own are; without gradients, windows and softcap."""
    if cu_seqlens_q is None:
        return flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)
    longest = (int(ends.diff().max()) for ends in (cu_seqlens_q, cu_seqlens_k))
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, *longest, softmax_scale=scale, causal=causal
    )


@_in_a_graph.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


def _record(**call: Any) -> None:
    scale, causal, window, softcap = call.pop("options")
    CALLS.append(
        call | {"softmax_scale": scale, "causal": causal, "window": window, "softcap": softcap}
    )


def _document(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    own = torch.arange(len(q))[:, None] + len(k) - len(q)
    distance = own - torch.arange(len(k))
    left, right = window
    hidden = (distance < 0) & causal
    hidden |= (distance > left) & (left >= 0)
    hidden |= (-distance > right) & (right >= 0)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0)
    return torch.einsum("hij,jhd->ihd", weights.nan_to_num(), v)


def install(monkeypatch: pytest.MonkeyPatch, *versions: int) -> None:
    """Make transformers find these versions, until the test ends."""
    CALLS.clear()
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    for version in (2, 3, 4):
        found = version in versions
        for module in (utils, modeling_flash_attention_utils):
            name = f"is_flash_attn_{version}_available"
            monkeypatch.setattr(module, name, lambda *_, found=found, **__: found)
    for package in ("flash_attn", "flash_attn_interface", "flash_attn.cute"):
        module = ModuleType(package)
        module.flash_attn_func = partial(flash_attn_func, package=package)
        module.flash_attn_varlen_func = partial(flash_attn_varlen_func, package=package)
        module.flash_attn_with_kvcache = None
        monkeypatch.setitem(sys.modules, package, module)
    padding = ModuleType("flash_attn.bert_padding")
    padding.pad_input = padding.unpad_input = None
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
