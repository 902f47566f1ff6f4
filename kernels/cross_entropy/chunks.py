"""The loop over chunks of tokens: matrix products by the vendor library around a pass over rows.

With logits x = softcap(hidden weight^T + bias), everything the loss needs of a token is

    lse = log sum_v exp x_v,    label_logit = x_label,    logit_sum = sum_v x_v,

and the gradient with respect to its logits, given those with respect to the three, is

    dx_v = (d_lse exp(x_v - lse) + d_label [v = label] + d_sum) (1 - (x_v / softcap)^2).

A chunk's logits live in one workspace, where the gradient replaces them; no chunk's outlive it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import kept_tokens

# Rows start on 16-element boundaries, so that a GPU can load them 128 bits at a time.
ROW_ALIGNMENT = 16


@dataclass(frozen=True)
class Kept:
    """The tokens that count."""

    index: Tensor | None  # None: all of them
    labels: Tensor
    unchecked: Tensor | None = (
        None  # where labels are outside the vocabulary, if the host waits not
    )

    def gather(self, values: Tensor) -> Tensor:
        values = values.reshape(-1)
        return values if self.index is None else values.index_select(0, self.index)

    def scatter(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Values of the kept tokens at their places, zero elsewhere."""
        if self.index is None:
            return values.view(shape)
        full = values.new_zeros(shape.numel())
        return full.index_copy_(0, self.index, values).view(shape)


class Statistics(NamedTuple):
    """Per token, float32 (float64 for float64 inputs); `logit_sum` is empty if nobody needs it."""

    lse: Tensor
    label_logit: Tensor
    logit_sum: Tensor


@dataclass(frozen=True)
class Pull:
    """Gradients with respect to a token's statistics, up to the factor 1 + 2 z_loss lse on `lse`.

    That factor is the z-loss: d(lse + z lse^2) / d lse. It is applied where the lse is first known.
    """

    lse: Tensor
    label_logit: Tensor
    logit_sum: Tensor | None
    z_loss: float = 0.0

    def of(self, part: slice) -> "Pull":
        on_sum = None if self.logit_sum is None else self.logit_sum[part]
        return Pull(self.lse[part], self.label_logit[part], on_sum, self.z_loss)


class Gradients(NamedTuple):
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


# (logits, labels, bias, softcap, statistics, lse_is_known, pull, gradient dtype) -> gradient, which
# takes the place of the logits. Fills `statistics`; without a `pull` the result is meaningless.
RowPass = Callable[
    [Tensor, Tensor, Tensor | None, float | None, Statistics, bool, Pull | None, torch.dtype],
    Tensor,
]


def sum_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """Of logits and of everything that is summed: float32, for float64 operands float64."""
    return torch.promote_types(compute_dtype, torch.float32)


def chunk_size(num_tokens: int, vocab: int, itemsize: int, device: torch.device) -> int:
    """Tokens whose logits fit the workspace.

    At most 512 MiB (64 MiB on a CPU, where matrix products stop gaining at some 300 rows), and at
    most a quarter of the tokens, but 256 tokens if that is more.
    """
    budget = (64 if device.type == "cpu" else 512) << 20
    rows = min(budget // (vocab * itemsize), max(num_tokens // 4, 256))
    return max(rows // 64 * 64, 64)


def keep(labels: Tensor, ignore_index: int | None, vocab_start: int, vocab_size: int) -> Kept:
    """Find the tokens that count and check their labels; labels become relative to `vocab_start`.

    This is the one place where the host waits for a GPU: it has to know how many tokens are kept.
    With `ignore_index=None` all are, and neither the wait nor the check happens there.

    Raises:
        ValueError: a label is outside `0 .. vocab_size - 1` and not `ignore_index`.
    """
    flat = labels.reshape(-1)
    kept = kept_tokens(flat, ignore_index)
    wrong = kept & ((flat < 0) | (flat >= vocab_size))
    if flat.numel() == 0 or (ignore_index is None and flat.device.type != "cpu"):
        return Kept(None, flat - vocab_start, wrong)
    first = wrong.int().argmax()
    count, num_wrong, first_wrong, label = torch.stack(
        [kept.sum(), wrong.sum(), first, flat[first]]
    ).tolist()
    if num_wrong:
        place = torch.unravel_index(torch.tensor(first_wrong), labels.shape)
        raise ValueError(
            f"labels[{', '.join(str(i.item()) for i in place)}] is {label}: labels must be "
            f"ignore_index ({ignore_index}) or from 0 to {vocab_size - 1}"
        )
    if count == flat.numel():
        return Kept(None, flat - vocab_start)
    index = torch.nonzero_static(kept, size=count)[:, 0]
    return Kept(index, flat.index_select(0, index) - vocab_start)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """`a @ b` with sums and result in `dtype`, whatever the dtype of a and b."""
    if a.dtype == dtype:
        return torch.mm(a, b, out=out) if out is not None else torch.mm(a, b)
    if a.is_cuda and dtype == torch.float32:
        if out is None:
            return torch.mm(a, b, out_dtype=dtype)
        return torch.ops.aten.mm.dtype_out(a, b, dtype, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32).to(dtype)
    return _product(a.float(), b.float(), torch.float32, out).to(dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b`, summed in the dtype of total."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def run(
    row_pass: RowPass,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Kept,
    softcap: float | None,
    chunk_tokens: int | None,
    compute_dtype: torch.dtype,
    want_sum: bool = False,
    lse: Tensor | None = None,
    pull: Pull | None = None,
    needs: Sequence[bool] = (False, False, False),
) -> tuple[Statistics, Gradients]:
    """Statistics of the kept tokens and, if there is a `pull`, the gradients that are needed.

    Args:
        hidden: (N, H). weight: (V, H). bias: (V,).
        compute_dtype: of the matrix products' operands; products, logits and sums are float32
            (float64 for float64).
        lse: (kept,), if it is known already.
        needs: whether the gradients of hidden, weight and bias are wanted.

    Returns:
        Statistics of shape (kept,), and the gradients of hidden, in its dtype, and of weight and
        bias, in float32 or float64.
    """
    vocab = weight.shape[0]
    count = kept.labels.numel()
    wide = sum_dtype(compute_dtype)
    weight = weight.to(compute_dtype)
    size = chunk_tokens or chunk_size(count, vocab, wide.itemsize, hidden.device)
    row = -(-vocab // ROW_ALIGNMENT) * ROW_ALIGNMENT
    workspace = hidden.new_empty((min(size, count), row), dtype=wide)[:, :vocab]
    statistics = Statistics(
        hidden.new_empty(count, dtype=wide) if lse is None else lse,
        hidden.new_empty(count, dtype=wide),
        hidden.new_empty(count if want_sum else 0, dtype=wide),
    )
    gradients = Gradients(
        torch.zeros_like(hidden) if needs[0] else None,
        torch.zeros_like(weight, dtype=wide) if needs[1] else None,
        hidden.new_zeros(vocab, dtype=wide) if needs[2] else None,
    )
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        rows = hidden[part] if kept.index is None else hidden[kept.index[part]]
        rows = rows.to(compute_dtype)
        logits = _product(rows, weight.t(), wide, out=workspace[: len(rows)])
        gradient = row_pass(
            logits,
            kept.labels[part],
            bias,
            softcap,
            Statistics(*(values[part] for values in statistics)),
            lse is not None,
            None if pull is None else pull.of(part),
            compute_dtype,
        )
        if gradients.hidden is not None:
            into = part if kept.index is None else kept.index[part]
            gradients.hidden[into] = _product(gradient, weight, hidden.dtype)
        if gradients.weight is not None:
            _add_product(gradients.weight, gradient.t(), rows)
        if gradients.bias is not None:
            gradients.bias.add_(gradient.sum(0, dtype=wide))
    if kept.unchecked is not None:
        statistics.label_logit.masked_fill_(kept.unchecked, float("nan"))
    return statistics, gradients
