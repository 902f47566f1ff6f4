"""The output embedding of a causal language model as one matrix product, its adapters included.

A loss without logits multiplies hidden states and weights itself, so it must know what the module
would compute. With LoRA (arXiv 2106.09685) that is `W x + sum_i s_i B_i A_i dropout(x)`: the
product of `[x, s_1 A_1 dropout(x), ...]` and `[W, B_1, ...]`. So the small terms are not rounded to
the large weights, as they would be in the dtype of `W + s B A`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Head(NamedTuple):
    """What to multiply: the logits are `hidden @ weight.T + bias`."""

    hidden: Tensor
    """(..., H + R), R the ranks of all adapters together."""
    weight: Tensor
    """(V, H + R)."""
    bias: Tensor | None
    """(V,)."""


def head_of(lm_head: nn.Module, hidden: Tensor) -> Head:
    """The factors of `lm_head(hidden)`.

    With adapters that are trained, the gradient of the loss is formed for `[W, B]` as a whole, also
    where W is frozen.

    Args:
        lm_head: a `torch.nn.Linear`, or peft's LoRA or `modules_to_save` around one.
        hidden: (..., H).

    Raises:
        ValueError: for any other module, for variants of LoRA (DoRA and others), and for an adapter
            that a hook feeds, as peft does where rows of a batch have adapters of their own.
    """
    if type(lm_head) is nn.Linear:
        return Head(hidden, lm_head.weight, lm_head.bias)
    if not type(lm_head).__module__.startswith("peft."):
        raise _refusal(lm_head)
    from peft.tuners.lora import Linear as LoraLinear
    from peft.utils import ModulesToSaveWrapper

    if type(lm_head) not in (LoraLinear, ModulesToSaveWrapper):
        raise _refusal(lm_head)
    head: Any = lm_head
    if head._forward_pre_hooks or head._forward_hooks:
        raise _refusal(lm_head, " with hooks (adapter_names sets them)")
    if isinstance(head, LoraLinear):
        return _with_lora(head, hidden)
    saved = [name for name in head.active_adapters if name in head.modules_to_save]
    if head.disable_adapters or not saved:
        return head_of(head.original_module, hidden)
    return head_of(head.modules_to_save[saved[0]], hidden)


def _with_lora(layer: Any, hidden: Tensor) -> Head:
    """As `peft.tuners.lora.Linear.forward`, which see for the order of casts."""
    if layer.merged and layer.disable_adapters:
        layer.unmerge()
    head = head_of(layer.base_layer, hidden)
    if layer.merged or layer.disable_adapters:
        return head
    hiddens, weights, bias = [hidden], [head.weight], head.bias
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if name in layer.lora_variant:
            raise _refusal(layer, f" of the variant {type(layer.lora_variant[name]).__name__}")
        down, up, scale = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
        low = down(layer.lora_dropout[name](hidden.to(down.weight.dtype))) * scale
        hiddens.append(low.to(hidden.dtype))
        weights.append(up.weight.to(head.weight.dtype))
        if up.bias is not None:
            shift = (up.bias * scale).to(head.weight.dtype)
            bias = shift if bias is None else bias + shift
    return Head(torch.cat(hiddens, dim=-1), torch.cat(weights, dim=1), bias)


def _refusal(module: nn.Module, detail: str = "") -> ValueError:
    kind = type(module)
    return ValueError(
        f"lm_head is a {kind.__module__}.{kind.__qualname__}{detail}; lrk's loss needs a "
        "torch.nn.Linear, which may have LoRA: leave lm_head out of the adapter or use "
        "lrk.patch(model, cross_entropy=False)"
    )
