"""The two `torch.library` operations of the divergence, as those of the loss.

- `..._tokens` gives each token's divergence, differentiable by computing both logits once more: 6
  matrix products in all.
- `..._total` gives their weighted sum. Its gradients are computed in the same pass over the chunks,
  up to one factor that is known only in backward: 4 matrix products.

Neither knows a gradient of the teacher.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...differentiation import no_second_derivative
from ..chunks import keep, sum_dtype
from ..operations import BY_DEVICE as LOSS_BY_DEVICE
from ..operations import BY_TRITON as LOSS_BY_TRITON
from ..operations import define_total, or_empty, without_autocast
from . import cpu, kernel
from .divergence import Head, PairPass, run


class Operations(NamedTuple):
    """One implementation of the two operations."""

    tokens: Callable[..., Tensor]
    total: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    # Processors without matrix units for 16-bit numbers multiply faster in float32.
    widens: Callable[[Tensor], bool]


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Head:
    return Head(hidden.reshape(-1, hidden.shape[-1]), weight, bias, softcap)


def _tokens_by(pair_pass: PairPass) -> Callable[..., Tensor]:
    def tokens(
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        ignore_index: int | None,
        temperature: float,
        softcap: float | None,
        teacher_softcap: float | None,
        chunk_tokens: int | None,
        teacher_dtype: torch.dtype,
        compute_dtype: torch.dtype,
    ) -> Tensor:
        kept = keep(labels, ignore_index, 0, weight.shape[0])
        student = _head(hidden, weight, bias, softcap)
        teacher = _head(teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
        with without_autocast(hidden):
            divergence, _ = run(
                pair_pass, student, teacher, kept, temperature, chunk_tokens, compute_dtype,
                teacher_dtype,
            )  # fmt: skip
        return kept.scatter(divergence, labels.shape)

    return tokens


def _tokens_backward_by(pair_pass: PairPass) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def tokens_backward(
        d_divergence: Tensor,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        ignore_index: int | None,
        temperature: float,
        softcap: float | None,
        teacher_softcap: float | None,
        chunk_tokens: int | None,
        teacher_dtype: torch.dtype,
        compute_dtype: torch.dtype,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = keep(labels, ignore_index, 0, weight.shape[0])
        student = _head(hidden, weight, bias, softcap)
        teacher = _head(teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
        with without_autocast(hidden):
            _, (d_hidden, d_weight, d_bias) = run(
                pair_pass, student, teacher, kept, temperature, chunk_tokens, compute_dtype,
                teacher_dtype, kept.gather(d_divergence), needs,
            )  # fmt: skip
            return (
                or_empty(d_hidden, hidden).view(hidden.shape if needs[0] else 0),
                or_empty(d_weight, weight).to(weight.dtype),
                or_empty(d_bias, weight).to(weight.dtype if bias is None else bias.dtype),
            )

    return tokens_backward


def _total_by(pair_pass: PairPass) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    def total(
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        token_weight: Tensor | None,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        ignore_index: int | None,
        temperature: float,
        softcap: float | None,
        teacher_softcap: float | None,
        chunk_tokens: int | None,
        teacher_dtype: torch.dtype,
        compute_dtype: torch.dtype,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        kept = keep(labels, ignore_index, 0, weight.shape[0])
        student = _head(hidden, weight, bias, softcap)
        teacher = _head(teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
        wide = sum_dtype(compute_dtype)
        if token_weight is None:
            share = hidden.new_ones(kept.labels.shape, dtype=wide)
        else:
            share = kept.gather(token_weight).to(wide)
        with without_autocast(hidden):
            divergence, (d_hidden, d_weight, d_bias) = run(
                pair_pass, student, teacher, kept, temperature, chunk_tokens, compute_dtype,
                teacher_dtype, share, needs,
            )  # fmt: skip
            return (
                (share * divergence).sum(),
                kept.scatter(divergence, labels.shape),
                or_empty(d_hidden, hidden).view(hidden.shape if needs[0] else 0),
                or_empty(d_weight, share),
                or_empty(d_bias, share),
            )

    return total


def _define_tokens(name: str, on_cpu: PairPass, on_gpu: PairPass) -> Callable[..., Any]:
    forward = torch.library.custom_op(
        f"{name}_tokens", _tokens_by(on_cpu), mutates_args=(), device_types="cpu"
    )
    forward.register_kernel("cuda")(_tokens_by(on_gpu))
    backward = torch.library.custom_op(
        f"{name}_tokens_backward", _tokens_backward_by(on_cpu), mutates_args=(), device_types="cpu"
    )
    backward.register_kernel("cuda")(_tokens_backward_by(on_gpu))

    @forward.register_fake
    def _(hidden, weight, labels, *rest):
        return hidden.new_empty(labels.shape, dtype=sum_dtype(rest[-1]))

    @backward.register_fake
    def _(d_divergence, hidden, weight, labels, bias, *rest):
        needs = rest[-1]
        return (
            hidden.new_empty(hidden.shape if needs[0] else 0),
            weight.new_empty(weight.shape if needs[1] else 0),
            (weight if bias is None else bias).new_empty(weight.shape[:1] if needs[2] else 0),
        )

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:7])
        ctx.options = inputs[7:]

    def differentiate(ctx, d_divergence):
        hidden, weight, _, bias, *_ = ctx.saved_tensors
        needs = [x is not None and x.requires_grad for x in (hidden, weight, bias)]
        gradients = backward(d_divergence, *ctx.saved_tensors, *ctx.options, needs)
        d_hidden, d_weight, d_bias = (
            gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)
        )
        return d_hidden, d_weight, None, d_bias, *([None] * (3 + len(ctx.options)))

    forward.register_autograd(differentiate, setup_context=setup_context)
    backward.register_autograd(no_second_derivative("linear_kl"))
    return forward


def _define(
    name: str, on_cpu: PairPass, on_gpu: PairPass, widens: Callable[[Tensor], bool]
) -> Operations:
    return Operations(
        _define_tokens(name, on_cpu, on_gpu),
        define_total(name, _total_by(on_cpu), _total_by(on_gpu)),
        widens,
    )


BY_DEVICE = _define("lrk::linear_kl", cpu.pair_pass, kernel.pair_pass, LOSS_BY_DEVICE.widens)
BY_TRITON = _define(
    "lrk::linear_kl_triton", kernel.pair_pass, kernel.pair_pass, LOSS_BY_TRITON.widens
)
