"""Activation checkpointing that keeps less on the device, or computes less again.

Checkpointing keeps the input of a layer and computes the rest again in the backward pass.

    lrk.memory.checkpointing.enable(model)

is transformers' checkpointing, with three choices.

Of what is computed again attention is the part that grows with the square of the length, while its
output and lse, all that its own backward pass needs beside q, k and v, grow with the length alone:
`keep_attention` keeps them. That some results are cheaper to hold than to compute is the argument
of Korthikanti et al. (2205.05198), whose attention, without a fused kernel, was still the one thing
to recompute.

`copies` holds the inputs of the layers in host memory (`lrk.memory.offload`).

`layers_per_checkpoint` makes checkpoints rarer. Where `lrk.memory.tiles` keeps the inside of a
layer small, half as many inputs are worth the inside of a second layer. Nothing more is computed,
except for the tiles themselves: all but those of a checkpoint's last layer run a third time.
(Checkpoints at every sqrt(L)-th of L equal steps are those of Chen et al., 1604.06174.)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lrk.hf.architectures import text_config
from lrk.hf.attention import BACKEND
from lrk.hf.backends import OURS
from lrk.hf.groups import check_groups, group_layers
from lrk.memory.offload import HostCopies


def enable(
    model: PreTrainedModel,
    keep_attention: bool = True,
    copies: HostCopies | None = None,
    layers_per_checkpoint: int = 1,
) -> None:
    """Checkpoint every layer; the last call's choice holds, transformers' own calls included.

    Args:
        keep_attention: save the results of lrk's attention. A layer then holds (B, Hq, S, D) in the
            model's dtype and (B, Hq, S) float32 more: 9.6 GiB over the 32 layers of Llama-3-8B at
            39,322 tokens.
        copies: where to hold the inputs of the layers; None leaves them on the device. Kept
            attention stays on the device in any case.
        layers_per_checkpoint: layers from one checkpoint to the next.

    Raises:
        ValueError: for `keep_attention` where the attention is not lrk's, and for several
            `layers_per_checkpoint` where it is not one of those of `lrk.patch`, or as
            `check_groups`.
    """
    backend = model.config._attn_implementation
    if keep_attention and backend != BACKEND:
        raise ValueError(
            f"model has the attention implementation {backend!r}, of which nothing would be kept: "
            "use lrk.patch(model, attention=True) first"
        )
    if layers_per_checkpoint < 1:
        raise ValueError(f"layers_per_checkpoint is {layers_per_checkpoint}; it must be at least 1")
    if layers_per_checkpoint > 1 and backend not in OURS:
        raise ValueError(
            f"layers_per_checkpoint is {layers_per_checkpoint} with the attention implementation "
            f"{backend!r}, whose masks may differ from layer to layer: use lrk.patch(model, "
            "attention=True) first"
        )
    check_groups(text_config(model.config), layers_per_checkpoint)
    # Older releases of transformers know only the second name.
    newest: Any = getattr(model, "activation_checkpointing_enable", None)
    checkpoint = newest or model.gradient_checkpointing_enable
    options: dict[str, Any] = {"use_reentrant": False}
    if keep_attention:
        options["context_fn"] = _attention_kept
    checkpoint(options)
    if copies is not None:
        layers: list[Any] = [
            m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)
        ]
        for layer in layers:
            layer._gradient_checkpointing_func = _saving(layer._gradient_checkpointing_func, copies)
    group_layers(model, layers_per_checkpoint)


def _saving(checkpoint: Callable[..., Any], copies: HostCopies) -> Callable[..., Any]:
    """What a checkpoint itself saves are its arguments; inside, it has hooks of its own."""

    def saving(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with copies.saving():
            return checkpoint(function, *args, **kwargs)

    return saving


def _attention_kept() -> tuple[AbstractContextManager, AbstractContextManager]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(
    context: Any, operation: Any, *args: Any, **kwargs: Any
) -> torch.utils.checkpoint.CheckpointPolicy:
    policies = torch.utils.checkpoint.CheckpointPolicy
    is_attention = operation in (
        torch.ops.lrk.attention.default,
        torch.ops.lrk.attention_triton.default,
    )
    return policies.MUST_SAVE if is_attention else policies.PREFER_RECOMPUTE
