"""The loop over chunks of tokens: matrix products by the vendor library around a pass over rows.

With logits x = softcap(hidden weight^T + bias) and label y, all the loss needs of a token is

    lse = log sum_v exp x_v,    nll = lse - x_y,    logit_sum = sum_v x_v,

and where it is asked for the entropy H = lse - sum_v p_v x_v of p_v = exp(x_v - lse). The gradient
of any function of the four with respect to the product is

    (p_v (on_probability - on_entropy (log p_v + H)) + on_label [v = y] + on_logit)
        (1 - (x_v / softcap)^2),

where on_probability = d_lse + d_nll, on_label = -d_nll, on_logit = d_logit_sum, on_entropy = d_H.

A chunk's logits live in one workspace and no chunk's outlive it. Their gradient takes their place,
or that of the chunks before it beside it, so that several chunks share one product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Rows start on 16-element boundaries, so that a GPU can load them 128 bits at a time.
ROW_ALIGNMENT = 16

# Tokens whose gradients meet in one product for the weight, on a GPU in 16 bits. To add a product
# to a float32 gradient of (V, H) reads and writes 8 V H bytes, and the three products of R tokens
# are 6 R V H operations: on an H100 (3.35 TB/s, 790 TFLOP/s) a share of 314 / R of their time,
# whatever V and H. That is 8 % here, and 31 % for 1,024 tokens.
GRADIENT_TOKENS = 4096


@dataclass(frozen=True)
class Kept:
    """The tokens that count."""

    index: Tensor | None  # None: all of them
    labels: Tensor
    # Where labels are outside the vocabulary, if the host did not wait to check them.
    invalid: Tensor | None = None

    def gather(self, values: Tensor) -> Tensor:
        """Values of the kept tokens, next to each other in memory."""
        values = values.reshape(-1)
        return values.contiguous() if self.index is None else values.index_select(0, self.index)

    def scatter(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Values of the kept tokens at their places, zero elsewhere."""
        if self.index is None:
            return values.view(shape)
        full = values.new_zeros(shape.numel())
        return full.index_copy_(0, self.index, values).view(shape)

    def select(self, rows: Tensor, part: slice) -> Tensor:
        """The rows of a part of the kept tokens."""
        return rows[part] if self.index is None else rows.index_select(0, self.index[part])

    def put(self, rows: Tensor, part: slice, values: Tensor) -> None:
        """The inverse of `select`."""
        if self.index is None:
            rows[part] = values
        else:
            rows.index_copy_(0, self.index[part], values)


class Statistics(NamedTuple):
    """Per token, float32 (float64 for float64 operands); the last two are empty if not wanted."""

    lse: Tensor
    nll: Tensor
    logit_sum: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Pull:
    """How hard each token's probabilities, label and logits are pulled: see the formula above.

    `on_probability` still lacks the factor 1 + 2 z_loss lse of the z-loss, d(lse + z lse^2) / dlse,
    which is known once the lse is.
    """

    on_probability: Tensor
    on_label: Tensor
    on_logit: Tensor | None
    on_entropy: Tensor | None = None
    z_loss: float = 0.0

    def of(self, part: slice) -> "Pull":
        return Pull(
            self.on_probability[part],
            self.on_label[part],
            None if self.on_logit is None else self.on_logit[part],
            None if self.on_entropy is None else self.on_entropy[part],
            self.z_loss,
        )


class Gradients(NamedTuple):
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


# (logits, labels, bias, softcap, statistics, pull, gradient): fills `statistics` and, if there is a
# `pull`, the gradient, whose rows are elsewhere or begin where those of the logits do. The logits
# become meaningless.
RowPass = Callable[
    [Tensor, Tensor, Tensor | None, float | None, Statistics, Pull | None, Tensor], None
]

# (operands, part, logits, gradient): does all that is to be done with a part of the kept tokens,
# given their hidden states in the compute dtype and room for their logits and their gradient.
ChunkPass = Callable[[Tensor, slice, Tensor, Tensor], None]


class ChunkSizes(NamedTuple):
    """Numbers of tokens.

    Attributes:
        logits: whose logits are in memory at once.
        gradient: whose gradients meet in one product for hidden states and one for the weight.
    """

    logits: int
    gradient: int


def sum_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """Of logits and of everything that is summed: float32, for float64 operands float64."""
    return torch.promote_types(compute_dtype, torch.float32)


def chunk_size(num_tokens: int, vocab: int, itemsize: int, device: torch.device) -> int:
    """Tokens whose logits fit the workspace, a multiple of 64.

    At most 512 MiB (128 MiB on a CPU, whose matrix products gain little from more), and at most a
    quarter of the tokens, but 1,024 tokens if that is more.
    """
    budget = (128 if device.type == "cpu" else 512) << 20
    rows = min(budget // (vocab * itemsize), max(num_tokens // 4, 1024))
    return max(rows // 64 * 64, 64)


def chunk_sizes(
    num_tokens: int,
    vocab: int,
    compute_dtype: torch.dtype,
    device: torch.device,
    adds_to_weight: bool,
    matrices: int = 1,
) -> ChunkSizes:
    """Those that take the least memory while the weight's gradient is added to seldom enough.

    In place, R tokens take 4 m R V bytes with `matrices` m of float32 logits for each; with the
    gradient beside the logits of c tokens, 2 R V + 4 m c V. For Llama 3 (V = 128,256, R = 4,096,
    c = 1,024) that is 1.58 GB instead of 2.10. In place is leaner up to R = 2 c (4 / 3 c for two).

    A CPU and operands as wide as the sums multiply too slowly to notice; a frozen weight adds
    nothing.
    """
    wide = sum_dtype(compute_dtype).itemsize
    rows = chunk_size(num_tokens, matrices * vocab, wide, device)
    if device.type == "cpu" or not adds_to_weight or compute_dtype.itemsize == wide:
        return ChunkSizes(rows, rows)
    together = max(min(GRADIENT_TOKENS, num_tokens), rows)
    in_place = wide * matrices * together
    beside = compute_dtype.itemsize * together + wide * matrices * rows
    return ChunkSizes(together if in_place <= beside else rows, together)


def kept_tokens(labels: Tensor, ignore_index: int | None) -> Tensor:
    """Whether each token counts: bool, the shape of labels."""
    if ignore_index is None:
        return torch.ones_like(labels, dtype=torch.bool)
    return labels != ignore_index


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
        [kept.sum(), wrong.sum(), first, flat.take(first)]
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


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """`out = a @ b`, summed in the dtype of out."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor, beta: float) -> Tensor:
    """`total = beta * total + a @ b`, summed in the dtype of total, which beta 0 overwrites."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b, beta=beta)
    if a.is_cuda:
        return torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, beta=beta, out=total)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype), beta=beta)


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def accumulate(
    chunk_pass: ChunkPass,
    hidden: Tensor,
    weight: Tensor,
    kept: Kept,
    sizes: ChunkSizes,
    needs: Sequence[bool],
) -> Gradients:
    """Take `chunk_pass` over the kept tokens; multiply and add up the gradients that it leaves.

    Args:
        hidden: (N, H).
        weight: (V, H), in the compute dtype.
        needs: whether the gradients of hidden, weight and bias are wanted; without any, the pass
            need not leave one.

    Returns:
        The gradients of hidden, in its dtype, and of weight and bias, in float32 or float64.
    """
    count, (vocab, _) = kept.labels.numel(), weight.shape
    narrow, wide = weight.dtype, sum_dtype(weight.dtype)
    row = -(-vocab // ROW_ALIGNMENT) * ROW_ALIGNMENT
    whole_logits = hidden.new_empty((min(sizes.logits, count), row), dtype=wide)
    if sizes.gradient == sizes.logits:
        room = whole_logits.view(narrow)[:, :vocab]
    else:
        room = hidden.new_empty((min(sizes.gradient, count), row), dtype=narrow)[:, :vocab]
    logits = whole_logits[:, :vocab]
    gradients = Gradients(
        hidden.new_zeros(hidden.shape) if needs[0] else None,
        weight.new_empty(weight.shape, dtype=wide) if needs[1] else None,
        hidden.new_zeros(vocab, dtype=wide) if needs[2] else None,
    )
    if count == 0 and gradients.weight is not None:
        gradients.weight.zero_()

    def add(group: slice) -> None:
        operands = kept.select(hidden, group).to(narrow)
        gradient = room[: len(operands)]
        for part in _parts(group.start, group.stop, sizes.logits):
            rows = slice(part.start - group.start, part.stop - group.start)
            here = operands[rows]
            chunk_pass(here, part, logits[: len(here)], gradient[rows])
        if gradients.hidden is not None:
            summed = product(gradient, weight, out=operands.new_empty(operands.shape, dtype=wide))
            kept.put(gradients.hidden, group, summed.to(hidden.dtype))
        if gradients.weight is not None:
            beta = float(group.start > 0)
            add_product(gradients.weight, gradient.t(), operands, beta)
        if gradients.bias is not None:
            gradients.bias.add_(gradient.sum(0, dtype=wide))

    for group in _parts(0, count, sizes.gradient):
        add(group)
    return gradients


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
    want_entropy: bool = False,
    pull: Pull | None = None,
    needs: Sequence[bool] = (False, False, False),
) -> tuple[Statistics, Gradients]:
    """Statistics of the kept tokens and, if there is a `pull`, the gradients that are needed.

    Args:
        hidden: (N, H). weight: (V, H). bias: (V,).
        chunk_tokens: of both `ChunkSizes`; None: `chunk_sizes` says.
        compute_dtype: of the matrix products' operands; products, logits and sums are float32
            (float64 for float64).
        needs: whether the gradients of hidden, weight and bias are wanted.

    Returns:
        Statistics of shape (kept,), and the gradients of hidden, in its dtype, and of weight and
        bias, in float32 or float64.
    """
    count = kept.labels.numel()
    weight = weight.to(compute_dtype)
    if chunk_tokens is None:
        sizes = chunk_sizes(count, weight.shape[0], compute_dtype, hidden.device, needs[1])
    else:
        sizes = ChunkSizes(chunk_tokens, chunk_tokens)
    statistics = Statistics(
        *(
            hidden.new_empty(count if wanted else 0, dtype=sum_dtype(compute_dtype))
            for wanted in (True, True, want_sum, want_entropy)
        )
    )

    def chunk_pass(operands: Tensor, part: slice, logits: Tensor, gradient: Tensor) -> None:
        row_pass(
            product(operands, weight.t(), out=logits),
            kept.labels[part],
            bias,
            softcap,
            Statistics(*(values[part] for values in statistics)),
            None if pull is None else pull.of(part),
            gradient,
        )

    gradients = accumulate(chunk_pass, hidden, weight, kept, sizes, needs)
    if kept.invalid is not None:
        statistics.nll.masked_fill_(kept.invalid, float("nan"))
    return statistics, gradients
