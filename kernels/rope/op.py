"""Rotary position embedding: the operation, its gradient and its validation."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..argument_types import LARGEST, check_dense, flag, real
from ..differentiation import check_differentiation
from . import cpu, kernel
from .phase import phase_increments

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor, float, bool, bool], tuple[Tensor, Tensor]]


def _define(name: str, on_cpu: Rotate, on_gpu: Rotate) -> torch.library.CustomOpDef:
    """A rotation by `positions * increments` turns, or back by as many where `inverse`.

    The rotation is linear and orthogonal (times `attention_scaling`), so its gradient is the
    inverse rotation of the incoming gradients: this very operation with the flag turned over.
    """

    @torch.library.custom_op(name, mutates_args=(), device_types="cpu")
    def operation(
        q: Tensor,
        k: Tensor,
        position_ids: Tensor,
        increments: Tensor,
        attention_scaling: float,
        interleaved: bool,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        return on_cpu(q, k, position_ids, increments, attention_scaling, interleaved, inverse)

    operation.register_kernel("cuda")(on_gpu)

    @operation.register_fake
    def _(q, k, position_ids, increments, attention_scaling, interleaved, inverse):
        return torch.empty_like(q), torch.empty_like(k)

    def setup_context(ctx, inputs, output):
        q, k, position_ids, increments, *ctx.how, ctx.inverse = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(position_ids, increments)
        ctx.shapes = q.shape, k.shape

    def backward(ctx, dq, dk):
        present = [
            grad if needed else None
            for grad, needed in zip((dq, dk), ctx.needs_input_grad[:2], strict=True)
        ]
        some = next((grad for grad in present if grad is not None), None)
        if some is None:
            return (None,) * 7
        # An absent gradient is given as one of no heads.
        dq, dk = (some[:, :0] if grad is None else grad for grad in present)
        dq, dk = operation(dq, dk, *ctx.saved_tensors, *ctx.how, not ctx.inverse)
        dq, dk = (
            None if grad is None else rotated
            for grad, rotated in zip(present, (dq, dk), strict=True)
        )
        return dq, dk, None, None, None, None, None

    operation.register_autograd(backward, setup_context=setup_context)
    return operation


_rope = _define("lrk::rope", on_cpu=cpu.rotate, on_gpu=kernel.rotate)
_rope_triton = _define("lrk::rope_triton", on_cpu=kernel.rotate, on_gpu=kernel.rotate)


def rope(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    inv_freq: Tensor,
    attention_scaling: float = 1.0,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their positions (RoPE), exactly at any position.

    RoFormer (Su et al., 2021, arXiv:2104.09864) with Llama's pairing: for `j < R/2`,
    `(x_j, x_{j + R/2})` turns by `position * inv_freq[j]` radians; dimensions from R on are copied.
    Where `interleaved`, it is RoFormer's own pair `(x_{2j}, x_{2j + 1})` that turns (GLM-4).
    Angles are formed from the raw positions in 64-bit fixed point: cosine and sine are within
    1.5e-7 of the truth for `inv_freq` as given, at every position up to `2^38`, and beyond off by
    another 1.7e-19 rad a position. The rotation is computed in float32 (float64 for float64
    tensors) and rounded once.

    Nothing but `position_ids` and frequencies is kept for the backward pass, which is the inverse
    rotation; it is differentiable in turn.

    Args:
        q: (B, H, S, D), any strides; float16, bfloat16 or float32, on the CPU also float64.
        k: (B, Hk, S, D), dtype and device of `q`, any strides.
        position_ids: (B, S), or (1, S) or (S,) for the same in all rows, int32 or int64, from 0 to
            2^38, in any order. Others are refused on the CPU; on a GPU, where looking would be a
            synchronisation, negative ones rotate backwards and larger ones less exactly.
        inv_freq: (R/2,) with 2 <= R <= D: radians per position in float64 or float32, taken as
            exact; or `phase_increments(inv_freq)` in int64, which spares each call the conversion.
        attention_scaling: factor on the rotated dimensions (YaRN's and LongRoPE's), finite.
        interleaved: partners are neighbours, 2j and 2j + 1, instead of R/2 apart.

    Returns:
        Rotated q and k, with the strides of `torch.empty_like`.

    Raises:
        TypeError: a dtype other than those above.
        ValueError: shapes or devices that do not fit together, or on the CPU a position out of
            range.
        NotImplementedError: `torch.func.grad`, `torch.func.jvp` and the like.
    """
    return _rope(*_checked(q, k, position_ids, inv_freq, attention_scaling, interleaved), False)


def rope_triton(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    inv_freq: Tensor,
    attention_scaling: float = 1.0,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """`rope` by the Triton kernel: on a GPU, or on CPU tensors in Triton's interpreter."""
    return _rope_triton(
        *_checked(q, k, position_ids, inv_freq, attention_scaling, interleaved), False
    )


def _checked(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    inv_freq: Tensor,
    attention_scaling: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float, bool]:
    """The arguments, with phase increments for frequencies, or an error about the first bad one."""
    check_dense(q=q, k=k, position_ids=position_ids, inv_freq=inv_freq)
    _check_queries_and_keys(q, k)
    position_ids = _rows_of_positions(position_ids, q)
    _check_frequencies(inv_freq, q)
    check_differentiation("rope", q, k, inv_freq)
    attention_scaling = real("attention_scaling", attention_scaling)
    if not -LARGEST <= attention_scaling <= LARGEST:
        raise ValueError(f"attention_scaling must be within {LARGEST:g}, got {attention_scaling}")
    interleaved = flag("interleaved", interleaved)
    increments = inv_freq if inv_freq.dtype == torch.int64 else phase_increments(inv_freq)
    return q, k, position_ids, increments, attention_scaling, interleaved


def _check_queries_and_keys(q: Tensor, k: Tensor) -> None:
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"q must be a floating-point tensor of 16, 32 or 64 bits, got {q.dtype}")
    if k.dtype != q.dtype:
        raise TypeError(f"k must have the dtype of q, {q.dtype}, got {k.dtype}")
    if q.dim() != 4:
        raise ValueError(f"q must have shape (B, H, S, D), got {tuple(q.shape)}")
    batch, _, length, head_dim = q.shape
    if k.dim() != 4 or (k.shape[0], k.shape[2], k.shape[3]) != (batch, length, head_dim):
        raise ValueError(
            f"k must have shape (B, Hk, S, D) = ({batch}, Hk, {length}, {head_dim}) as q has, "
            f"got {tuple(k.shape)}"
        )
    if k.device != q.device:
        raise ValueError(f"k must be on the device of q, {q.device}, got {k.device}")


def _rows_of_positions(position_ids: Tensor, q: Tensor) -> Tensor:
    """(B or 1, S), or an error about what is neither that nor (S,)."""
    if position_ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"position_ids must be int32 or int64, got {position_ids.dtype}")
    batch, _, length, _ = q.shape
    if tuple(position_ids.shape) not in ((batch, length), (1, length), (length,)):
        raise ValueError(
            f"position_ids must have shape (B, S) = ({batch}, {length}), or (1, {length}) or "
            f"({length},) for the same in all rows, got {tuple(position_ids.shape)}"
        )
    if position_ids.device != q.device:
        raise ValueError(
            f"position_ids must be on the device of q, {q.device}, got {position_ids.device}"
        )
    return position_ids[None] if position_ids.dim() == 1 else position_ids


def _check_frequencies(inv_freq: Tensor, q: Tensor) -> None:
    if inv_freq.dtype not in (torch.float64, torch.float32, torch.int64):
        raise TypeError(
            "inv_freq must be float64 or float32 (radians), or int64 (phase_increments), "
            f"got {inv_freq.dtype}"
        )
    if inv_freq.requires_grad:
        raise ValueError("inv_freq requires a gradient, which rope does not compute")
    head_dim = q.shape[-1]
    if inv_freq.dim() != 1 or not 2 <= 2 * inv_freq.numel() <= head_dim:
        raise ValueError(
            f"inv_freq must have shape (R/2,) with 2 <= R <= D = {head_dim}, "
            f"got {tuple(inv_freq.shape)}"
        )
    if inv_freq.device != q.device:
        raise ValueError(f"inv_freq must be on the device of q, {q.device}, got {inv_freq.device}")
