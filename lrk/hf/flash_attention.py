"""FlashAttention 2, 3 and 4, where they are asked for by name: transformers' own integration.

It is handed documents and never positions, in which it would look for documents: it starts one at
every position that equals the smallest. A row that is one document goes to the batched kernel, all
others to that of variable lengths; padding is documents without keys, whose output is 0.

Sources: FlashAttention-2 (arXiv 2307.08691), FlashAttention-3 (arXiv 2407.08608); the limits are
those of the packages' own checks.
"""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import transformers.utils
from torch import Tensor
from transformers import AttentionInterface
from transformers import modeling_flash_attention_utils as integration
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrk.hf.attention import check_patched, understood
from lrk.hf.document_boundaries import document_boundaries
from lrk.kernels.attention.mask import a_document_a_row

PACKAGES = {
    "flash_attention_2": "flash-attn",
    "flash_attention_3": "flash-attn-3",
    "flash_attention_4": "flash-attn-4",
}
"""Who makes the kernels, by transformers' name of the implementation."""

BACKENDS = {implementation: f"lrk_fa{implementation[-1]}" for implementation in PACKAGES}
"""Ours, by transformers' name. From "flash" in a name transformers would infer its own masks."""

DTYPES = (torch.float16, torch.bfloat16)
LARGEST_HEAD_DIM = 256


def check_installed(implementation: str) -> None:
    """Import the kernels, so that a compiled model finds them.

    Raises:
        ValueError: if transformers does not find the package, or does not know it. By itself it
            would take another build of the kernels from a hub in its place. Also if the package
            cannot be imported, as where it was built for another torch.
    """
    package = PACKAGES[implementation]
    name = f"is_flash_attn_{implementation[-1]}_available"
    is_available = getattr(transformers.utils, name, None)
    if is_available is None:
        raise ValueError(
            f"attention is {implementation!r}, which transformers {transformers.__version__} does "
            "not know: use a later release, or attention='lrk'"
        )
    if not is_available():
        raise ValueError(
            f"attention is {implementation!r}, but transformers finds no package {package} and a "
            f"GPU to run it on: install {package}, or use attention='lrk'"
        )
    broken = f"attention is {implementation!r}, but {package} is installed and cannot be imported"
    try:
        functions, *_ = integration.lazy_import_flash_attention(implementation)
    except ImportError as error:
        # Some releases note it as imported before it is, and would not try again.
        integration._loaded_implementation = None
        raise ValueError(f"{broken}: {error}") from error
    if functions[1] is None:
        raise ValueError(f"{broken}: transformers tried before, and has no kernel of its")


def backend(implementation: str) -> Callable[..., tuple[Tensor, None]]:
    """The attention function that runs transformers' `implementation` on lrk's documents."""
    # The integration chooses its kernels by the name in a module's config, which is ours there.
    named = SimpleNamespace(config=SimpleNamespace(_attn_implementation=implementation))

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        deterministic: bool | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, None]:
        """Attention function of a backend; the signature is transformers'.

        Args:
            query: (B, Hq, Sq, D); key, value: (B, Hk, Sk, D); float16 or bfloat16, D up to 256.
            max_length_q, max_length_k: tokens of the longest document, as the patched model found
                them; default Sq and Sk.
            deterministic: whether gradients must be the same each time; default what
                `torch.use_deterministic_algorithms` says.
            attention_mask, arguments: as in `understood`.

        Returns:
            (B, Sq, Hq, D) output and None.

        Raises:
            ValueError: as `understood` does; also in a model that is not patched, for other dtypes
                and head dims, for a window without causality, for packed queries on a cache without
                documents of the keys, and for what the installed package does not take.
        """
        check_patched(implementation, arguments)
        asked = understood(implementation, module, query, key, attention_mask, **arguments)
        check_query(implementation, query)
        if asked.sinks is not None:
            raise ValueError(
                f"the model has sinks, which attention {implementation!r} does not sum: use "
                "attention='lrk'"
            )
        if deterministic is None and torch.are_deterministic_algorithms_enabled():
            deterministic = True
        for name, choice in (("softcap", asked.softcap), ("deterministic", deterministic)):
            if choice and name not in _parameters(implementation):
                raise ValueError(
                    f"{name} is {choice}, and the installed {PACKAGES[implementation]} does not "
                    "take it: use attention='lrk'"
                )
        batch, q_length, k_length = query.shape[0], query.shape[2], key.shape[2]
        documents: dict[str, Any] = {}
        if q_length != k_length or not a_document_a_row(asked.cu_seqlens, batch):
            documents = _documents(asked.cu_seqlens, asked.cu_seqlens_k, q_length, k_length)
        if documents and attention_mask is None:  # of padding, the row is the bound
            documents |= _bounds(max_length_q or q_length, max_length_k or k_length)
        output, _ = ALL_ATTENTION_FUNCTIONS[implementation](
            named,
            query,
            key,
            value,
            None,
            dropout=0.0,
            scaling=asked.scale,
            sliding_window=asked.window,
            softcap=asked.softcap,
            is_causal=asked.causal,
            deterministic=deterministic,
            **documents,
        )
        return output, None

    return attend


def _documents(
    cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None, q_length: int, k_length: int
) -> dict[str, Any]:
    """As the integration takes them; nothing where there are none.

    A document is at most as long as its row, which is bound enough: the kernels leave at once where
    a document has ended.
    """
    if cu_seqlens is None:
        return {}
    if cu_seqlens_k is None and q_length != k_length:
        raise ValueError(
            f"cu_seq_lens_q packs {q_length} queries a row on {k_length} keys: pass cu_seq_lens_k"
        )
    keys = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    return {
        "cu_seq_lens_q": cu_seqlens.to(torch.int32),
        "cu_seq_lens_k": keys.to(torch.int32),
        **_bounds(q_length, k_length),
    }


def _bounds(q_length: int, k_length: int) -> dict[str, int]:
    """Never 1, which FlashAttention-2 takes for a promise that every document has a query."""
    return {"max_length_q": max(q_length, 2), "max_length_k": max(k_length, 2)}


def check_query(name: str, query: Tensor) -> None:
    """Refuse queries that no FlashAttention kernel takes, before it says so in words of its own.

    Args:
        name: what `lrk.patch` knows the attention by.
        query: (B, Hq, Sq, D).

    Raises:
        ValueError: for other dtypes than float16 and bfloat16, and a head dim above 256.
    """
    device = query.device.type
    dtype = query.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype not in DTYPES:
        raise ValueError(
            f"attention is {name!r}, whose kernels take float16 and bfloat16, and the queries are "
            f"{dtype}: load the model in one of them, use autocast, or attention='lrk'"
        )
    if query.shape[-1] > LARGEST_HEAD_DIM:
        raise ValueError(
            f"attention is {name!r}, whose kernels take heads of up to {LARGEST_HEAD_DIM} numbers, "
            f"and the model's have {query.shape[-1]}: use attention='lrk'"
        )


def _parameters(implementation: str) -> frozenset[str]:
    """What the installed kernel of variable lengths takes."""
    functions, *_ = integration.lazy_import_flash_attention(implementation)
    return frozenset(inspect.signature(functions[1]).parameters)


for _implementation, _name in BACKENDS.items():
    AttentionInterface.register(_name, backend(_implementation))
    AttentionMaskInterface.register(_name, functools.partial(document_boundaries, unpads=False))
