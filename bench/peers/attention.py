"""Causal attention over one document or packed ones: q (B, H, S, D), k and v (B, Hk, S, D)."""

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

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
    """Equal documents end to end in each of `rows` rows of `length` tokens."""

    count: int
    length: int
    rows: int = 1

    @property
    def longest(self) -> int:
        return self.length // self.count

    @property
    def ends(self) -> Tensor:
        """Over the tokens of all rows."""
        last = self.rows * self.length
        return torch.arange(0, last + 1, self.longest, dtype=torch.int32, device=DEVICE)

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
    """Our kernels, told of documents even where a row is one: of an empty one before it too."""
    ends = torch.cat([documents.ends[:1], documents.ends])
    return lambda q, k, v: attention_triton(q, k, v, cu_seqlens=ends)


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


def one_query(backend: SDPBackend) -> Attend:
    """PyTorch's attention of a row's last token, which sees all keys."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

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
    """`torch.nn.attention.varlen`, which is FlashAttention over documents.

    Before PyTorch 2.12 it takes no groups of heads: key heads are repeated, which is its cost.
    """
    from torch.nn.attention.varlen import varlen_attn

    if "enable_gqa" in signature(varlen_attn).parameters:
        return _of_tokens(_causal(varlen_attn, window_size=(-1, 0), enable_gqa=True), documents)
    attend = _of_tokens(_causal(varlen_attn, window_size=(-1, 0)), documents)

    def repeating(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        return attend(q, k, v)

    return repeating


def _causal(function: Callable[..., Tensor], **how: Any) -> Callable[..., Tensor]:
    return lambda *tokens: function(*tokens, **how)


def flash_attn(documents: Documents) -> Attend:
    """FlashAttention-2."""
    need_gpu("flash-attn")
    need_package("flash_attn", "flash-attn")
    from flash_attn import flash_attn_varlen_func

    return _of_tokens(_causal(flash_attn_varlen_func, causal=True), documents)


def flash_attn_3(documents: Documents) -> Attend:
    """FlashAttention-3, its deterministic backward."""
    need_gpu("flash-attn-3")
    need_package("flash_attn_interface", "flash-attn-3")
    from flash_attn_interface import flash_attn_varlen_func

    function = _causal(flash_attn_varlen_func, causal=True, deterministic=True)
    return _of_tokens(function, documents)


def _of_tokens(function: Callable[..., Tensor], documents: Documents) -> Attend:
    """For what takes (tokens of all rows, heads, head dim) and the ends of documents."""
    ends, longest = documents.ends, documents.longest

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        out = function(*tokens, ends, ends, longest, longest)
        return out.unflatten(0, (documents.rows, documents.length)).transpose(1, 2)

    return attend


def fla(documents: Documents) -> Attend:
    need_gpu("fla")
    need_package("fla", "fla-core")
    if documents.rows > 1:
        raise Unavailable("documents are given of one row")
    from fla.ops.attn.parallel import parallel_attn

    ends = documents.ends.long()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = (x.transpose(1, 2) for x in (q, k, v))
        return parallel_attn(*tokens, cu_seqlens=ends).transpose(1, 2)

    return attend
