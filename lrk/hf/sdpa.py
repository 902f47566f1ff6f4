"""PyTorch's `scaled_dot_product_attention`, where it is asked for by name: transformers' own
integration.

Its fast kernels know causality and nothing of documents or windows, so that each row must be one
document. With a mask, or for a shape that cuDNN's attention and FlashAttention do not take, PyTorch
would form the scores of all pairs; here it is an error.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrk.hf.attention import Asked, check_patched, understood
from lrk.hf.document_boundaries import document_boundaries
from lrk.hf.flash_attention import check_query
from lrk.kernels.attention.mask import a_document_a_row

IMPLEMENTATION = "sdpa"
BACKEND = "lrk_torch"
"""Ours. From "sdpa" in a name transformers would check, and set, what is for its own."""

_KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]


def sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    deterministic: bool | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attention function of the backend; the signature is transformers'.

    Args:
        query: (B, Hq, Sq, D); key, value: (B, Hk, Sk, D); on a GPU float16 or bfloat16, D up to
            256.
        deterministic: PyTorch asks `torch.use_deterministic_algorithms` alone.
        attention_mask, arguments: as in `understood`.

    Returns:
        (B, Sq, Hq, D) output and None.

    Raises:
        ValueError: as `understood` does; also in a model that is not patched, where a row is not
            one document, where a window is shorter than the keys, for several queries on a cache,
            for softcap, and on a GPU for other dtypes and head dims.
        RuntimeError: PyTorch's, where neither cuDNN's attention nor FlashAttention runs.
    """
    check_patched(IMPLEMENTATION, arguments)
    asked = understood(IMPLEMENTATION, module, query, key, attention_mask, **arguments)
    _check(asked, query, key)
    if deterministic and not torch.are_deterministic_algorithms_enabled():
        raise ValueError(
            "deterministic is True, which PyTorch's attention takes from "
            "torch.use_deterministic_algorithms(True) alone"
        )
    with sdpa_kernel(_KERNELS):
        output, _ = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION](
            module,
            query,
            key,
            value,
            None,
            dropout=0.0,
            scaling=asked.scale,
            is_causal=asked.causal,
        )
    return output, None


def no_mask(
    batch_size: int, q_length: int, kv_length: int, *args: Any, **kwargs: Any
) -> Tensor | None:
    """Mask function of the backend; the signature is that of `document_boundaries`.

    Raises:
        ValueError: as `document_boundaries` does, and where it would return boundaries.
    """
    kwargs["unpads"] = False
    if document_boundaries(batch_size, q_length, kv_length, *args, **kwargs) is not None:
        raise _refusal(
            "which knows no documents, and an attention_mask may have padding, or a static cache "
            "room",
            "leave out padding and attention_mask, take a dynamic cache, or",
        )
    return None


def _check(asked: Asked, query: Tensor, key: Tensor) -> None:
    """Refuse what would need a mask, or a kernel that forms the scores."""
    (batch, _, q_length, _), k_length = query.shape, key.shape[2]
    if not a_document_a_row(asked.cu_seqlens, batch):
        raise _refusal(
            "which knows no documents, and a row of the batch has several",
            "put one in each row, or",
        )
    if asked.cu_seqlens_k is not None and q_length != k_length:
        raise _refusal("which knows no documents, and cu_seq_lens_k packs the keys of a cache")
    if asked.window is not None and k_length > asked.window:
        raise _refusal(
            f"which has no windows, and sliding_window is {asked.window} for {k_length} keys"
        )
    if asked.causal and 1 < q_length < k_length:
        raise _refusal(
            f"which aligns {q_length} queries with the first of {k_length} keys, not with the last",
            "generate without prefill_chunk_size and assistants, or",
        )
    if asked.softcap is not None:
        raise _refusal(f"which has no softcap, and softcap is {asked.softcap}")
    if asked.sinks is not None:
        raise _refusal("which has no sinks, and the model has")
    if query.device.type != "cpu":
        check_query(IMPLEMENTATION, query)


def _refusal(why: str, instead: str = "") -> ValueError:
    remedy = f"{instead} use attention='lrk'".lstrip()
    return ValueError(f"attention is {IMPLEMENTATION!r}, {why}: {remedy}")


AttentionInterface.register(BACKEND, sdpa)
AttentionMaskInterface.register(BACKEND, no_mask)
