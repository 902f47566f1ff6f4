"""The two `torch.library` operations that carry every option of the loss.

- `..._statistics` gives each token's log-sum-exp, negative log-likelihood and, where wanted, sum of
  logits (for label smoothing) and entropy, differentiable by computing the logits once more: 4
  matrix products in all. The loss of each token is ordinary autograd on these numbers.
- `..._total` gives the weighted sum of the tokens' losses. Its gradients are computed in the same
  pass over the chunks, up to one factor that is known only in backward: 3 matrix products.

That factor (1 / tokens, the loss scale of a GradScaler, ...) multiplies finished gradients, so
small numbers do not vanish in half precision on the way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..differentiation import no_second_derivative
from . import cpu, kernel
from .chunks import Pull, RowPass, keep, run, sum_dtype
from .reduction import loss_of_tokens


class Operations(NamedTuple):
    """One implementation of the two operations."""

    statistics: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    total: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    # Processors without matrix units for 16-bit numbers multiply faster in float32.
    widens: Callable[[Tensor], bool]


def without_autocast(hidden: Tensor) -> torch.autocast:
    """An operation is told what to compute in; autocast must not change it again inside."""
    return torch.autocast(hidden.device.type, enabled=False)


def or_empty(gradient: Tensor | None, like: Tensor) -> Tensor:
    """An operation cannot return None."""
    return like.new_empty(0) if gradient is None else gradient


def _statistics_by(row_pass: RowPass) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    def statistics(
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        ignore_index: int | None,
        softcap: float | None,
        chunk_tokens: int | None,
        compute_dtype: torch.dtype,
        vocab_start: int,
        vocab_size: int,
        want_sum: bool,
        want_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kept = keep(labels, ignore_index, vocab_start, vocab_size)
        flat = hidden.reshape(-1, hidden.shape[-1])
        with without_autocast(hidden):
            found, _ = run(
                row_pass, flat, weight, bias, kept, softcap, chunk_tokens, compute_dtype,
                want_sum, want_entropy,
            )  # fmt: skip
        return (
            kept.scatter(found.lse, labels.shape),
            kept.scatter(found.nll, labels.shape),
            kept.scatter(found.logit_sum, labels.shape) if want_sum else found.logit_sum,
            kept.scatter(found.entropy, labels.shape) if want_entropy else found.entropy,
        )

    return statistics


def _statistics_backward_by(row_pass: RowPass) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def statistics_backward(
        d_lse: Tensor,
        d_nll: Tensor,
        d_logit_sum: Tensor | None,
        d_entropy: Tensor | None,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        ignore_index: int | None,
        softcap: float | None,
        chunk_tokens: int | None,
        compute_dtype: torch.dtype,
        vocab_start: int,
        vocab_size: int,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = keep(labels, ignore_index, vocab_start, vocab_size)
        flat = hidden.reshape(-1, hidden.shape[-1])
        on_logit = None if d_logit_sum is None else kept.gather(d_logit_sum)
        on_entropy = None if d_entropy is None else kept.gather(d_entropy)
        pull = Pull(kept.gather(d_lse + d_nll), -kept.gather(d_nll), on_logit, on_entropy)
        with without_autocast(hidden):
            _, gradients = run(
                row_pass, flat, weight, bias, kept, softcap, chunk_tokens, compute_dtype,
                want_entropy=d_entropy is not None, pull=pull, needs=needs,
            )  # fmt: skip
            d_hidden, d_weight, d_bias = gradients
            return (
                or_empty(d_hidden, hidden).view(hidden.shape if needs[0] else 0),
                or_empty(d_weight, weight).to(weight.dtype),
                or_empty(d_bias, weight).to(weight.dtype if bias is None else bias.dtype),
            )

    return statistics_backward


def _total_by(row_pass: RowPass) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    def total(
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        token_weight: Tensor | None,
        ignore_index: int | None,
        label_smoothing: float,
        z_loss: float,
        softcap: float | None,
        chunk_tokens: int | None,
        compute_dtype: torch.dtype,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        vocab = weight.shape[0]
        kept = keep(labels, ignore_index, 0, vocab)
        flat = hidden.reshape(-1, hidden.shape[-1])
        wide = sum_dtype(compute_dtype)
        if token_weight is None:
            share = flat.new_ones(kept.labels.shape, dtype=wide)
        else:
            share = kept.gather(token_weight).to(wide)
        on_logit = -label_smoothing / vocab * share if label_smoothing else None
        pull = Pull(share, (label_smoothing - 1.0) * share, on_logit, z_loss=z_loss)
        with without_autocast(hidden):
            found, gradients = run(
                row_pass, flat, weight, bias, kept, softcap, chunk_tokens, compute_dtype,
                want_sum=label_smoothing > 0.0, pull=pull, needs=needs,
            )  # fmt: skip
            loss = loss_of_tokens(found, vocab, label_smoothing, z_loss)
            d_hidden, d_weight, d_bias = gradients
            return (
                (share * loss).sum(),
                kept.scatter(loss, labels.shape),
                or_empty(d_hidden, hidden).view(hidden.shape if needs[0] else 0),
                or_empty(d_weight, share),
                or_empty(d_bias, share),
            )

    return total


def _define_statistics(name: str, on_cpu: RowPass, on_gpu: RowPass) -> Callable[..., Any]:
    forward = torch.library.custom_op(
        f"{name}_statistics", _statistics_by(on_cpu), mutates_args=(), device_types="cpu"
    )
    forward.register_kernel("cuda")(_statistics_by(on_gpu))
    backward = torch.library.custom_op(
        f"{name}_statistics_backward",
        _statistics_backward_by(on_cpu),
        mutates_args=(),
        device_types="cpu",
    )
    backward.register_kernel("cuda")(_statistics_backward_by(on_gpu))

    @forward.register_fake
    def _(
        hidden, weight, labels, bias, ignore_index, softcap, chunk_tokens, compute_dtype,
        vocab_start, vocab_size, want_sum, want_entropy,
    ):  # fmt: skip
        wanted = (True, True, want_sum, want_entropy)
        shapes = (labels.shape if one else 0 for one in wanted)
        return tuple(hidden.new_empty(shape, dtype=sum_dtype(compute_dtype)) for shape in shapes)

    @backward.register_fake
    def _(d_lse, d_nll, d_logit_sum, d_entropy, hidden, weight, labels, bias, *rest):
        needs = rest[-1]
        return (
            hidden.new_empty(hidden.shape if needs[0] else 0),
            weight.new_empty(weight.shape if needs[1] else 0),
            (weight if bias is None else bias).new_empty(weight.shape[:1] if needs[2] else 0),
        )

    def setup_context(ctx, inputs, output):
        hidden, weight, labels, bias, *rest, want_sum, want_entropy = inputs
        ctx.save_for_backward(hidden, weight, labels, bias)
        ctx.rest = rest
        lse, _, logit_sum, entropy = output
        ctx.dtype = lse.dtype
        unwanted = [x for x, one in ((logit_sum, want_sum), (entropy, want_entropy)) if not one]
        ctx.mark_non_differentiable(*unwanted)
        ctx.set_materialize_grads(False)

    def differentiate(ctx, d_lse, d_nll, d_logit_sum, d_entropy):
        hidden, weight, labels, bias = ctx.saved_tensors
        needs = [x is not None and x.requires_grad for x in (hidden, weight, bias)]
        nothing = hidden.new_zeros(labels.shape, dtype=ctx.dtype)
        gradients = backward(
            nothing if d_lse is None else d_lse,
            nothing if d_nll is None else d_nll,
            d_logit_sum,
            d_entropy,
            *ctx.saved_tensors,
            *ctx.rest,
            needs,
        )
        d_hidden, d_weight, d_bias = (
            gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)
        )
        return d_hidden, d_weight, None, d_bias, *([None] * (len(ctx.rest) + 2))

    forward.register_autograd(differentiate, setup_context=setup_context)
    backward.register_autograd(no_second_derivative("linear_cross_entropy"))
    return forward


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Their product, rounded once to `dtype`. A 0-dim factor would be rounded before.

    Where a factor of 1 shows without waiting for a GPU (and without tracing, hence the type), the
    gradient itself. With `retain_graph` that is the saved tensor: autograd copies it into `.grad`,
    and complains in the next backward if somebody has written to it.
    """
    known = type(factor) is Tensor and factor.device.type == "cpu"
    if known and gradient.dtype == dtype and factor.item() == 1.0:
        return gradient
    factor = factor.reshape((1,) * gradient.dim())
    return torch.mul(gradient, factor, out=gradient.new_empty(gradient.shape, dtype=dtype))


def define_total(
    name: str, on_cpu: Callable[..., Any], on_gpu: Callable[..., Any]
) -> Callable[..., Any]:
    """The operation `{name}_total`, whose gradients are computed in forward.

    Its arguments begin with hidden, weight, labels, bias and token_weight, the tensors that may
    need a gradient (labels apart), and end with the compute dtype and which of hidden, weight and
    bias do. It returns the total, each token's loss without its weight, and the gradients of those
    three, empty where not needed.
    """
    forward = torch.library.custom_op(f"{name}_total", on_cpu, mutates_args=(), device_types="cpu")
    forward.register_kernel("cuda")(on_gpu)
    public = name.removeprefix("lrk::").removesuffix("_triton")

    @forward.register_fake
    def _(hidden, weight, labels, bias, token_weight, *rest):
        compute_dtype, needs = rest[-2:]
        wide = sum_dtype(compute_dtype)
        return (
            hidden.new_empty((), dtype=wide),
            hidden.new_empty(labels.shape, dtype=wide),
            hidden.new_empty(hidden.shape if needs[0] else 0),
            weight.new_empty(weight.shape if needs[1] else 0, dtype=wide),
            weight.new_empty(weight.shape[:1] if needs[2] else 0, dtype=wide),
        )

    def setup_context(ctx, inputs, output):
        hidden, weight, _, bias, token_weight, *rest, needs = inputs
        _, token_loss, *gradients = output
        ctx.save_for_backward(token_loss, *gradients)
        inputs = (hidden, weight, bias, token_weight)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        ctx.needs = [*needs, token_weight is not None and token_weight.requires_grad]
        ctx.num_options = len(rest) + 1
        ctx.mark_non_differentiable(token_loss, *gradients)
        ctx.set_materialize_grads(False)  # of them: a zero as large as the weight

    def differentiate(ctx, d_total, *_):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                f"{public} computes its gradients in forward and cannot differentiate them again "
                f"for create_graph=True: use {public}_reference"
            )
        token_loss, *gradients = ctx.saved_tensors
        d_hidden, d_weight, d_bias, d_token_weight = (
            _scaled(gradient, d_total, dtype) if needed else None
            for gradient, dtype, needed in zip(
                [*gradients, token_loss], ctx.dtypes, ctx.needs, strict=True
            )
        )
        return d_hidden, d_weight, None, d_bias, d_token_weight, *([None] * ctx.num_options)

    forward.register_autograd(differentiate, setup_context=setup_context)
    return forward


def _define(name: str, on_cpu: RowPass, on_gpu: RowPass, widens: Callable) -> Operations:
    return Operations(
        _define_statistics(name, on_cpu, on_gpu),
        define_total(name, _total_by(on_cpu), _total_by(on_gpu)),
        widens,
    )


BY_DEVICE = _define(
    "lrk::linear_cross_entropy", cpu.row_pass, kernel.row_pass, lambda hidden: not hidden.is_cuda
)
BY_TRITON = _define(
    "lrk::linear_cross_entropy_triton", kernel.row_pass, kernel.row_pass, lambda hidden: False
)
