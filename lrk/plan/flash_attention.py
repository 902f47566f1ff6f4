"""FlashAttention as a plan sees it: what it returns, keeps for its backward pass and allocates.

A plan needs no GPU, so it cannot import the packages. These operations have the shapes of theirs
and compute nothing; `lrk.plan.workspace` counts what is inside.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from lrk.hf import flash_attention as named

BACKENDS = {name: f"lrk_plan_{ours}" for name, ours in named.BACKENDS.items()}
"""The plan's backend of transformers by the name of the attention."""


@torch.library.custom_op("lrk_plan::flash_attention", mutates_args=())
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, version: int
) -> tuple[Tensor, Tensor]:
    """Output (B, Sq, Hq, D) and lse (B, Hq, Sq) float32 of (B, S, H, D) queries, keys, values."""
    raise NotImplementedError("a plan computes nothing")


@flash_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, version: int
) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    return torch.empty_like(q), q.new_empty(batch, heads, length, dtype=torch.float32)


@torch.library.custom_op("lrk_plan::flash_attention_backward", mutates_args=())
def flash_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    window: int | None,
    version: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    raise NotImplementedError("a plan computes nothing")


@flash_attention_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = flash_attention_backward(grad_out, *ctx.saved_tensors, *ctx.options)
    return (*gradients, None, None, None)


flash_attention.register_autograd(_pull, setup_context=_keep)


def _backend(version: int) -> Any:
    """The attention function that stands for a version; the signature is transformers'."""

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        tokens_first = (x.transpose(1, 2) for x in (query, key, value))
        return flash_attention(*tokens_first, True, sliding_window, version)[0], None

    return attend


for _name, _ours in BACKENDS.items():
    AttentionInterface.register(_ours, _backend(int(_name[-1])))
