"""Activation checkpointing that never computes attention twice.

Checkpointing keeps the input of a layer and computes the rest again in the backward pass. Of that
rest, attention is the part that grows with the square of the length, while its output and lse, all
that its own backward pass needs beside q, k and v, grow with the length alone. So they are kept:

    lrk.checkpointing.enable(model)

is transformers' checkpointing with this policy. That some results are cheaper to hold than to
compute is the argument of Korthikanti et al. (2205.05198), whose attention, without a fused kernel,
was still the one thing to recompute.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedModel

from lrk.kernels import attention as _  # noqa: F401  (the operations must be registered)


def keep_attention() -> tuple[AbstractContextManager, AbstractContextManager]:
    """A `context_fn` of `torch.utils.checkpoint`: save the results of lrk's attention.

    It needs `use_reentrant=False`. A layer then holds (B, Hq, S, D) in the model's dtype and
    (B, Hq, S) float32 more: 9.6 GiB over the 32 layers of Llama-3-8B at 39,322 tokens.
    """
    return torch.utils.checkpoint.create_selective_checkpoint_contexts(_policy)


def enable(model: PreTrainedModel) -> None:
    """Checkpoint every layer of a model that `lrk.patch` has given lrk's attention.

    Raises:
        ValueError: if its attention is not lrk's, of which nothing would be kept.
    """
    backend = model.config._attn_implementation
    if backend != "lrk":
        raise ValueError(
            f"model has the attention implementation {backend!r}, of which nothing would be kept: "
            "use lrk.patch(model, attention=True) first"
        )
    # Older releases of transformers know only the second name.
    newest: Any = getattr(model, "activation_checkpointing_enable", None)
    checkpoint = newest or model.gradient_checkpointing_enable
    checkpoint({"use_reentrant": False, "context_fn": keep_attention})


def _policy(
    context: Any, operation: Any, *args: Any, **kwargs: Any
) -> torch.utils.checkpoint.CheckpointPolicy:
    policies = torch.utils.checkpoint.CheckpointPolicy
    is_attention = operation in (
        torch.ops.lrk.attention.default,
        torch.ops.lrk.attention_triton.default,
    )
    return policies.MUST_SAVE if is_attention else policies.PREFER_RECOMPUTE
