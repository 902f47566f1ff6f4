"""FLOPs and workspace of every operation of a step: what a `Ledger` asks for."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from lrk.plan.four_bits import product_workspace
from lrk.plan.ledger import TEMPORARY, Workspace
from lrk.plan.workspace import (
    Device,
    attention_workspace,
    divergence_workspace,
    flash_attention_backward_workspace,
    loss_workspace,
    rope_workspace,
    sdpa_backward_workspace,
)

Priced = tuple[Workspace | None, int]


def visible_pairs(q_length: int, k_length: int, causal: bool, window: int | None) -> int:
    """Pairs of a query and a key that it sees, in one document whose ends are aligned."""
    if not causal:
        return q_length * k_length
    first = k_length - q_length + 1  # keys that the first query sees
    reach = k_length if window is None else min(window, k_length)
    growing = min(max(reach - first, 0), q_length)
    return growing * (2 * first + growing - 1) // 2 + (q_length - growing) * min(
        reach, max(first, reach)
    )


# Operations on a mask, which is read as it is.
_MASKS = ("aten::where", "aten::masked_fill", "aten::native_dropout_backward")


def prices_on(
    device: Device, documents: tuple[int, ...] = ()
) -> Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Priced]:
    """The prices of a device.

    FLOPs are those of the matrix products: 2 for a product and a sum. Attention counts the visible
    pairs, with 2 products forward and 5 backward (the kernels' two passes execute 7).

    Args:
        documents: lengths of those of a row, of which the first has labels: attention over as many
            tokens as they have together sees no pairs across them.
    """
    attention, attention_backward, flash_attention, flash_attention_backward, loss = (
        functools.partial(priced, documents=documents)
        for priced in (
            *(_attention, _attention_backward),
            *(_flash_attention, _flash_attention_backward),
            _loss,
        )
    )
    special: dict[str, Callable[..., Priced]] = {
        "lrk::attention": attention,
        "lrk::attention_backward": attention_backward,
        "lrk::rope": _rope,
        "lrk::linear_cross_entropy_total": loss,
        "lrk::linear_kl_total": _divergence,
        "aten::_scaled_dot_product_flash_attention_for_cpu": _sdpa,
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _sdpa_backward,
        "lrk_plan::flash_attention": flash_attention,
        "lrk_plan::flash_attention_backward": flash_attention_backward,
        "bitsandbytes::gemm_4bit": _product_of_4_bits,
        "aten::_grouped_mm": _grouped_products,
    }

    def price(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Priced:
        name, _, _ = func.name().partition(".")
        if name in special:
            return special[name](device, *args)
        if func.overloadpacket in flop_registry:
            return None, flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        if device.kind == "cpu" and torch.Tag.pointwise in func.tags and name not in _MASKS:
            return _widened(args), 0
        return None, 0

    return price


def _widened(operands: tuple[Any, ...]) -> Workspace | None:
    """Operands that a CPU converts before it adds or multiplies them; a GPU does as it reads."""
    tensors = [x for x in operands if isinstance(x, Tensor) and x.dim() > 0]
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) < 2:
        return None
    common = functools.reduce(torch.promote_types, dtypes)
    converted = sum(x.numel() for x in tensors if x.dtype != common)
    return Workspace(TEMPORARY, converted * common.itemsize)


def _attention_flops(
    q: Tensor,
    k: Tensor,
    causal: bool,
    window: int | None,
    products: int,
    documents: tuple[int, ...] = (),
) -> int:
    batch, heads, length, head_dim = q.shape
    pairs = visible_pairs(length, k.shape[2], causal, window)
    if sum(documents) == length == k.shape[2]:
        pairs = sum(visible_pairs(each, each, causal, window) for each in documents)
    return 2 * products * batch * heads * pairs * head_dim


def _attention(
    device: Device, q: Tensor, k: Tensor, v: Tensor, *rest: Any, documents: tuple[int, ...]
) -> Priced:
    *mask, causal, _, window, _, _ = rest
    flops = _attention_flops(q, k, causal, window, 2, documents)
    return attention_workspace(device, q, k, v, mask), flops


def _attention_backward(device: Device, *args: Any, documents: tuple[int, ...]) -> Priced:
    _, _, q, k, v, _, lse, *mask, causal, _, window, _, _ = args
    flops = _attention_flops(q, k, causal, window, 5, documents)
    return attention_workspace(device, q, k, v, mask, lse), flops


def _sdpa(
    device: Device, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False
) -> Priced:
    return None, _attention_flops(q, k, causal, None, 2)


def _sdpa_backward(device: Device, *args: Any) -> Priced:
    _, q, k, _, _, _, _, causal = args
    return sdpa_backward_workspace(device, q, k), _attention_flops(q, k, causal, None, 5)


def _flash_attention(
    device: Device,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    _: int,
    documents: tuple[int, ...],
) -> Priced:
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    return None, _attention_flops(q, k, causal, window, 2, documents)


def _flash_attention_backward(device: Device, *args: Any, documents: tuple[int, ...]) -> Priced:
    _, q, k, _, _, _, causal, window, version = args
    whole = q.transpose(1, 2), k.transpose(1, 2)
    flops = _attention_flops(*whole, causal, window, 5, documents)
    return flash_attention_backward_workspace(q, k, version), flops


def _rope(
    device: Device, q: Tensor, k: Tensor, _: Tensor, increments: Tensor, *rest: Any
) -> Priced:
    return rope_workspace(device, q, k, increments.numel()), 0


def _loss(
    device: Device, hidden: Tensor, weight: Tensor, *rest: Any, documents: tuple[int, ...]
) -> Priced:
    *_, chunk_tokens, compute_dtype, needs = rest
    if len(documents) > 1:  # of a row the first alone has labels
        rows = hidden.flatten(0, -2).view(-1, sum(documents), hidden.shape[-1])
        hidden = rows.detach()[:, : documents[0]].flatten(0, 1)
    workspace = loss_workspace(device, hidden, weight, compute_dtype, chunk_tokens, needs)
    return workspace, 2 * hidden.numel() * weight.shape[0] * (1 + needs[0] + needs[1])


def _divergence(device: Device, hidden: Tensor, weight: Tensor, *rest: Any) -> Priced:
    teacher_hidden, teacher_weight = rest[3:5]
    *_, chunk_tokens, teacher_dtype, compute_dtype, needs = rest
    workspace = divergence_workspace(
        device, hidden, weight, teacher_hidden, teacher_weight, chunk_tokens, teacher_dtype,
        compute_dtype, needs,
    )  # fmt: skip
    vocab = weight.shape[0]
    student = 2 * hidden.numel() * vocab * (1 + needs[0] + needs[1])
    return workspace, student + 2 * teacher_hidden.numel() * vocab


def _product_of_4_bits(
    device: Device, x: Tensor, _: Tensor, shape: Any, scales: Tensor, blocksize: int, *rest: Any
) -> Priced:
    return product_workspace(x, shape, blocksize), 2 * x.numel() * shape[0]


def _grouped_products(device: Device, a: Tensor, b: Tensor, *_: Any) -> Priced:
    """Of experts: each row with its expert's matrix, or the gradient of all matrices.

    Args:
        a, b: (S, K) and (E, K, N), or (K, S) and (S, N). Which rows are whose does not matter.
    """
    return None, 2 * a.numel() * b.shape[-1]
