"""Causal attention over one document or packed ones: q (B, H, S, D), k and v (B, Hk, S, D)."""

from collections.abc import Callable
from inspect import signature
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.device import DEVICE
from bench.peers import Unavailable, need_gpu, need_package
from lrk.kernels.attention import attention, attention_triton

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Documents(NamedTuple):
    """Equal documents end to end in one row of `length` tokens."""

    count: int
    length: int

    @property
    def ends(self) -> Tensor:
        step = self.length // self.count
        return torch.arange(0, self.length + 1, step, dtype=torch.int32, device=DEVICE)

    @property
    def index(self) -> Tensor:
        return torch.arange(self.length, device=DEVICE) // (self.length // self.count)


def lrk(documents: Documents) -> Attend:
    """Ours for the device."""
    ends = documents.ends if documents.count > 1 else None
    return lambda q, k, v: attention(q, k, v, cu_seqlens=ends)


def lrk_triton(documents: Documents) -> Attend:
    """Our kernels, on a CPU in Triton's interpreter."""
    ends = documents.ends if documents.count > 1 else None
    return lambda q, k, v: attention_triton(q, k, v, cu_seqlens=ends)


def lrk_documents(documents: Documents) -> Attend:
    """Our kernels, told of documents even where a row is one, as the trainer does."""
    return lambda q, k, v: attention_triton(q, k, v, cu_seqlens=documents.ends)


def sdpa(documents: Documents) -> Attend:
    """PyTorch chooses. Documents need a mask of S x S."""
    if documents.count == 1:
        return lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )
    index = documents.index
    mask = (index[:, None] == index).tril()
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def sdpa_flash(documents: Documents) -> Attend:
    """PyTorch's FlashAttention-2."""
    return _pinned(SDPBackend.FLASH_ATTENTION, documents)


def sdpa_cudnn(documents: Documents) -> Attend:
    return _pinned(SDPBackend.CUDNN_ATTENTION, documents)


def _pinned(backend: SDPBackend, documents: Documents) -> Attend:
    if documents.count > 1:
        raise Unavailable("SDPA's fast backends take no documents")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return attend


def flex(documents: Documents) -> Attend:
    """FlexAttention, compiled."""
    need_gpu("FlexAttention")
    return _flex(documents)


def _flex(documents: Documents) -> Attend:
    index, length = documents.index, documents.length

    def in_order(batch, head, i, j):
        return i >= j

    def in_document(batch, head, i, j):
        return (index[i] == index[j]) & (i >= j)

    visible = in_order if documents.count == 1 else in_document
    # Not compiled, the mask of 131,072 tokens would be a tensor of 17 GB on its way to blocks.
    mask = create_block_mask(
        visible, None, None, length, length, device=str(DEVICE), _compile=DEVICE.type == "cuda"
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def varlen(documents: Documents) -> Attend:
    """`torch.nn.attention.varlen`, which is FlashAttention over documents."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = documents.ends, documents.length // documents.count
    grouped = "enable_gqa" in signature(varlen_attn).parameters
    how = {"window_size": (-1, 0)} | ({"enable_gqa": True} if grouped else {})

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _one_row(q)
        if not grouped:  # before PyTorch 2.12 the heads have to be repeated, which is its cost
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        tokens = (x[0].transpose(0, 1) for x in (q, k, v))
        return varlen_attn(*tokens, ends, ends, longest, longest, **how).transpose(0, 1)[None]

    return attend


def flash_attn(documents: Documents) -> Attend:
    """FlashAttention-2."""
    need_gpu("flash-attn")
    need_package("flash_attn", "flash-attn")
    from flash_attn import flash_attn_varlen_func

    return _of_tokens(flash_attn_varlen_func, documents)


def flash_attn_3(documents: Documents) -> Attend:
    """FlashAttention-3, its deterministic backward."""
    need_gpu("flash-attn-3")
    need_package("flash_attn_interface", "flash-attn-3")
    from flash_attn_interface import flash_attn_varlen_func

    return _of_tokens(flash_attn_varlen_func, documents, deterministic=True)


def _of_tokens(function: Callable[..., Tensor], documents: Documents, **how: bool) -> Attend:
    ends, longest = documents.ends, documents.length // documents.count

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _one_row(q)
        tokens = (x[0].transpose(0, 1) for x in (q, k, v))
        out = function(*tokens, ends, ends, longest, longest, causal=True, **how)
        return out.transpose(0, 1)[None]

    return attend


def fla(documents: Documents) -> Attend:
    need_gpu("fla")
    need_package("fla", "fla-core")
    from fla.ops.attn.parallel import parallel_attn

    ends = documents.ends.long()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _one_row(q)
        tokens = (x.transpose(1, 2) for x in (q, k, v))
        return parallel_attn(*tokens, cu_seqlens=ends).transpose(1, 2)

    return attend


def _one_row(q: Tensor) -> None:
    if q.shape[0] != 1:
        raise Unavailable("documents are given of one row")
