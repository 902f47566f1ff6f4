"""Attention as an operation of PyTorch: validation, dispatch by device, shapes, gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..argument_types import (
    LARGEST,
    SMALLEST,
    check_dense,
    check_dense_if_given,
    flag,
    integer,
    real,
)
from ..autocast import autocast_dtype
from ..differentiation import check_differentiation, no_second_derivative
from . import backward, cpu, forward
from .mask import Mask

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    kv_lengths: Tensor | None = None,
    q_offset: int | Tensor | None = None,
    window: int | None = None,
    window_position_ids: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention in memory linear in the length; what a query sees never depends on RoPE.

    Query i of a row sits at key index `p = q_offset + i` and sees the keys `j` of its document
    with `j <= p` (if `causal`) inside the window. A query that sees no key gives 0.

    Args:
        q: (B, Hq, Sq, D) queries, any strides; float16, bfloat16 or float32 (on a CPU float64 too).
        k: (B, Hk, Sk, D) keys in the dtype of `q`; Hk divides Hq, and query head h reads key head
            `h // (Hq / Hk)`.
        v: (B, Hk, Sk, D) values.
        causal: hide the keys after a query's own index.
        cu_seqlens: (N+1,) int32 or int64, the ends of N packed documents over the B*Sq query
            tokens counted row by row: 0 first, B*Sq last, never decreasing, no document across two
            rows. Empty documents are allowed. Query i of a document sits at the document's key
            index `key length - query length + i`.
        cu_seqlens_k: likewise over the B*Sk key tokens: queries of document n see its keys only.
            Default: `cu_seqlens`, where Sq equals Sk.
        kv_lengths: (B,) int32 or int64, how many keys of each row are valid, as in a static cache.
        q_offset: key index of query 0, an int or an integer tensor of shape () or (B,) within 2^30;
            default `kv_lengths - Sq`, or `Sk - Sq` without `kv_lengths`. Not with documents.
        window: see only the last `window` keys up to a query's own, itself included; as
            `sliding_window` in transformers. Needs `causal`.
        window_position_ids: (B or 1, Sk) int: count the window in positions, not in keys; key j is
            visible if `position[p] - position[j] < window`. Never falling in a document, and
            without documents in a row, beyond `kv_lengths` too; from 0 to 2^31 - 1. `p` must be
            below Sk.
        scale: factor of the scores, default `D ** -0.5`.
        softcap: replace scores s by `softcap * tanh(s / softcap)` (Gemma 2, arXiv 2408.00118).
        return_lse: also return the lse.

    Returns:
        The output (B, Hq, Sq, D) in the dtype of `q`; with `return_lse` also the natural logarithm
        of the summed exponentials of each query's scores, (B, Hq, Sq) float32 (float64 for float64
        inputs), `-inf` where no key is visible. Both carry gradients.

    Raises:
        ValueError: shapes, dtypes or devices do not fit. The values of tensors are checked on a
            CPU only; reading them on a GPU would make the host wait.
        TypeError: an argument is not of its type; numpy's numbers are numbers, 2.0 is no integer.
        NotImplementedError: `torch.func.jvp` and the like, or a second derivative.

    Source: FlashAttention-2, arXiv 2307.08691. On a CPU it is PyTorch's own flash attention.
    Deterministic. Under autocast the inputs are cast as `scaled_dot_product_attention` casts them.
    """
    mask = _mask(
        q, k, causal, cu_seqlens, cu_seqlens_k, kv_lengths, q_offset, window, window_position_ids
    )
    return_lse = flag("return_lse", return_lse)
    out, lse = _call(_attention, q, k, v, mask, scale, softcap)
    return (out, lse) if return_lse else out


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    kv_lengths: Tensor | None = None,
    q_offset: int | Tensor | None = None,
    window: int | None = None,
    window_position_ids: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` by the Triton kernels: on a GPU, or on CPU tensors in Triton's interpreter."""
    mask = _mask(
        q, k, causal, cu_seqlens, cu_seqlens_k, kv_lengths, q_offset, window, window_position_ids
    )
    return_lse = flag("return_lse", return_lse)
    out, lse = _call(_attention_triton, q, k, v, mask, scale, softcap)
    return (out, lse) if return_lse else out


def _call(
    op: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    check_dense(v=v)
    q, k, v = _autocast(q, k, v)
    _check_tensors(q, k, v)
    check_differentiation("attention", q, k, v)
    scale = max(q.shape[-1], 1) ** -0.5 if scale is None else _positive("scale", scale)
    return op(q, k, v, *mask, scale, None if softcap is None else _positive("softcap", softcap))


def _positive(name: str, value: float) -> float:
    value = real(name, value)
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{name} is {value}: must be from {SMALLEST} to {LARGEST:g}")
    return value


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast would."""
    dtype = autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    return tuple(x.to(dtype) if x.dtype in _DTYPES else x for x in tensors)


# Validation. Only what the host knows without waiting for the device.


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dtype not in _DTYPES and not (q.dtype == torch.float64 and q.device.type == "cpu"):
        raise ValueError(
            f"q has dtype {q.dtype}: must be float16, bfloat16 or float32 (on a CPU also float64)"
        )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}: must be (batch, heads, length, head dim)"
            )
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {x.dtype}: must be that of q, {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on device {x.device}: must be that of q, {q.device}")
    if k.shape != v.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}: must be that of k, {tuple(k.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"k has shape {tuple(k.shape)}: batch and head dim must be those of q, {tuple(q.shape)}"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"k has {k.shape[1]} heads: must divide q's {q.shape[1]} heads")


def _mask(
    q: Tensor,
    k: Tensor,
    causal: bool,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    kv_lengths: Tensor | None,
    q_offset: int | Tensor | None,
    window: int | None,
    window_position_ids: Tensor | None,
) -> Mask:
    """Check the arguments that say what is visible, and fill in their defaults."""
    check_dense(q=q, k=k)
    check_dense_if_given(
        cu_seqlens=cu_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        kv_lengths=kv_lengths,
        window_position_ids=window_position_ids,
    )
    causal = flag("causal", causal)
    if q.ndim != 4 or k.ndim != 4:  # `_check_tensors` names the culprit
        _check_tensors(q, k, k)
    (batch, _, q_length, _), k_length = q.shape, k.shape[2]
    if cu_seqlens is not None or cu_seqlens_k is not None:
        if kv_lengths is not None or q_offset is not None:
            raise ValueError(
                "kv_lengths and q_offset do not combine with cu_seqlens: documents have their own "
                "key lengths (cu_seqlens_k) and align their last query with their last key"
            )
        cu_seqlens, cu_seqlens_k = _documents(cu_seqlens, cu_seqlens_k, q_length, k_length)
    if kv_lengths is not None:
        _check_integers("kv_lengths", kv_lengths, (batch,))
    if window is not None:
        window = integer("window", window)
        if not (causal and window >= 1):
            raise ValueError(f"window is {window}, causal {causal}: must be at least 1, and causal")
    offset, offsets = k_length - q_length, None
    if isinstance(q_offset, Tensor):
        check_dense(q_offset=q_offset)
        _check_integers("q_offset", q_offset, (), (batch,))
        offsets = q_offset.expand(batch)
    elif q_offset is not None:
        offset = integer("q_offset", q_offset)
    elif kv_lengths is not None:
        offsets = kv_lengths - q_length
    if window_position_ids is not None:
        if window is None:
            raise ValueError("window_position_ids is given without window: it has no meaning then")
        _check_integers(
            "window_position_ids", window_position_ids, (1, k_length), (batch, k_length)
        )
        if cu_seqlens is None and offsets is None and offset + q_length > k_length:
            raise ValueError(
                f"q_offset is {offset}: with window_position_ids every query needs a key index "
                f"below {k_length}, but the last of {q_length} sits at {offset + q_length - 1}"
            )
    if q_offset is not None and offsets is None:
        # The kernels' indices have 32 bits. Behind all keys only the window tells how far behind.
        beyond = max(offset - k_length, 0)
        offset = max(offset - beyond, -q_length)
        window = None if window is None else max(window - beyond, 1)
    if window is not None:
        # Beyond any distance; the kernels add it to 32-bit indices and 64-bit positions.
        window = min(window, 2**30 if window_position_ids is None else 2**31 - 1)
    mask = Mask(
        cu_seqlens,
        cu_seqlens_k,
        kv_lengths,
        offsets,
        window_position_ids,
        causal,
        offset,
        window,
    )
    _check_devices(q, mask)
    return mask


def _check_devices(q: Tensor, mask: Mask) -> None:
    for name, x in mask._asdict().items():
        if isinstance(x, Tensor) and x.device != q.device:
            name = "q_offset" if name == "q_offsets" else name
            raise ValueError(f"{name} is on device {x.device}: must be that of q, {q.device}")


def _documents(
    cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None, q_length: int, k_length: int
) -> tuple[Tensor, Tensor]:
    if cu_seqlens is None:
        raise ValueError("cu_seqlens_k is given without cu_seqlens: queries need documents too")
    if cu_seqlens_k is None:
        if q_length != k_length:
            raise ValueError(
                f"cu_seqlens_k is missing: k has {k_length} tokens a row and q {q_length}, so the "
                "documents of q cannot be those of k"
            )
        cu_seqlens_k = cu_seqlens
    for name, ends in (("cu_seqlens", cu_seqlens), ("cu_seqlens_k", cu_seqlens_k)):
        if ends.ndim != 1 or ends.shape[0] < 2 or ends.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"{name} has shape {tuple(ends.shape)} and dtype {ends.dtype}: must be (N+1,) "
                "int32 or int64, with at least one document"
            )
    if cu_seqlens.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_k has {cu_seqlens_k.shape[0] - 1} documents: must have those of "
            f"cu_seqlens, {cu_seqlens.shape[0] - 1}"
        )
    return cu_seqlens, cu_seqlens_k


def _check_integers(name: str, x: Tensor, *shapes: tuple[int, ...]) -> None:
    if tuple(x.shape) not in shapes or x.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and dtype {x.dtype}: must be "
            f"{' or '.join(dict.fromkeys(map(str, shapes)))} int32 or int64"
        )


# The operations.


def _new_dense(x: Tensor) -> Tensor:
    """Uninitialised (B, H, S, D), with a token's heads side by side in memory as transformers'."""
    batch, heads, length, head_dim = x.shape
    return x.new_empty(batch, length, heads, head_dim).transpose(1, 2)


def _define(name: str, cpu_forward: Any, cpu_backward: Any) -> Callable[..., Any]:
    """Define `lrk::<name>` and `lrk::<name>_backward`, which on a GPU are the Triton kernels."""

    @torch.library.custom_op(f"lrk::{name}", mutates_args=(), device_types="cpu")
    def op(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor | None,
        cu_seqlens_k: Tensor | None,
        kv_lengths: Tensor | None,
        q_offsets: Tensor | None,
        window_position_ids: Tensor | None,
        causal: bool,
        q_offset: int,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        mask = Mask(
            cu_seqlens,
            cu_seqlens_k,
            kv_lengths,
            q_offsets,
            window_position_ids,
            causal,
            q_offset,
            window,
        )
        return cpu_forward(q, k, v, mask, scale, softcap)

    @torch.library.custom_op(f"lrk::{name}_backward", mutates_args=(), device_types="cpu")
    def op_backward(
        grad_out: Tensor,
        grad_lse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_seqlens: Tensor | None,
        cu_seqlens_k: Tensor | None,
        kv_lengths: Tensor | None,
        q_offsets: Tensor | None,
        window_position_ids: Tensor | None,
        causal: bool,
        q_offset: int,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mask = Mask(
            cu_seqlens,
            cu_seqlens_k,
            kv_lengths,
            q_offsets,
            window_position_ids,
            causal,
            q_offset,
            window,
        )
        return cpu_backward(grad_out, grad_lse, q, k, v, out, lse, mask, scale, softcap)

    @op.register_kernel("cuda")
    def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *mask, scale, softcap = rest
        return forward.launch(q, k, v, Mask(*mask), scale, softcap)

    @op_backward.register_kernel("cuda")
    def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        *mask, scale, softcap = args[7:]
        return backward.launch(*args[:7], Mask(*mask), scale, softcap)  # type: ignore[call-arg]

    @op.register_fake
    def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(q.dtype, torch.float32)
        return _new_dense(q), q.new_empty(q.shape[:-1], dtype=exact)

    @op_backward.register_fake
    def _(
        grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _new_dense(q), _new_dense(k), _new_dense(v)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:8], *output)
        ctx.settings = inputs[8:]
        ctx.set_materialize_grads(False)

    def gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, *mask, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        grads = op_backward(grad_out, grad_lse, q, k, v, out, lse, *mask, *ctx.settings)
        return (*grads, *[None] * 10)

    op.register_autograd(gradients, setup_context=setup_context)
    op_backward.register_autograd(no_second_derivative("attention"))
    return op


_attention = _define("attention", cpu.forward, cpu.backward)
_attention_triton = _define("attention_triton", forward.launch, backward.launch)
