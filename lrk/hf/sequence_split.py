"""A batch whose tokens lie on several processes: each computes some of every row.

Everything in these models but attention looks at one token at a time. There the keys and values of
all N processes are gathered, and each attends from its own queries. Documents, positions and
windows stay those of the whole rows, so the result is that of one process.

A row is cut into 2 N pieces, and process r computes the pieces r and 2 N - 1 - r: a query sees the
keys before it, so piece p costs 2 p + 1, and the two of each process together 4 N. (As in the Llama
3 report, arXiv 2407.21783, section 3.3.2.)

A layer gathers `2 Hk D S` numbers, of which a process lacks `(N - 1) / N`. In the backward pass the
gradients of keys and values that each process has for all tokens are summed where the tokens lie.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lrk.hf.shifted_labels import to_predictor
from lrk.kernels.autocast import autocast_dtype

# PyTorch 2.13 gave them new names.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

_IGNORE_INDEX = -100
_WHOLE = "_lrk_whole_position_ids"
# What becomes that of the tokens at hand, and what `SequenceSplit` says in its place.
_OF_TOKENS = ("input_ids", "position_ids", "labels")
_OF_LABELS = ("shift_labels", "token_weight")
_OF_DOCUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class Piece(NamedTuple):
    """Tokens `start .. stop - 1` of every row, which see the keys `0 .. stop - 1`."""

    start: int
    stop: int
    cu_seqlens: Tensor
    """(N + 1,) int32 ends of the documents among the B * (stop - start) queries."""
    cu_seqlens_k: Tensor
    """(N + 1,) int32 likewise among the B * stop keys."""


class SequenceSplit:
    """How the rows of a batch lie on the processes of a group; see `split_batch`, which makes it.

    It is no dataclass: under bf16 FSDP2 makes those anew that it finds among a layer's arguments.

    Attributes:
        group: processes that share the batch.
        position_ids: (B, S) integers of the whole rows.
        cu_seq_lens: (N + 1,) integers, the ends of the documents of the whole rows.
        pieces: those of this process. Their boundaries are made here, for all layers.

    Raises:
        ValueError: for rows that cannot be cut into two pieces a process.
    """

    def __init__(self, group: dist.ProcessGroup, position_ids: Tensor, cu_seq_lens: Tensor) -> None:
        self.group, self.position_ids, self.cu_seq_lens = group, position_ids, cu_seq_lens
        count = 2 * self.size
        if self.length % count or not self.length:
            raise ValueError(
                f"rows have {self.length} tokens; over {self.size} processes they must be a "
                f"multiple of {count}, two pieces each"
            )
        rank = dist.get_rank(self.group)
        head, tail = (self._piece(place) for place in (rank, count - 1 - rank))
        self.pieces: tuple[Piece, Piece] = (head, tail)

    @property
    def size(self) -> int:
        """Processes of the group."""
        return dist.get_world_size(self.group)

    @property
    def length(self) -> int:
        """Tokens of a whole row."""
        return self.position_ids.shape[1]

    def of(self, x: Tensor) -> Tensor:
        """(B, S / N), what this process has of (B, S)."""
        return torch.cat([x[:, piece.start : piece.stop] for piece in self.pieces], dim=1)

    def of_labels(self, x: Tensor, fill: float) -> Tensor:
        """(B, S / N), what belongs to labels (B, S), in the places of the tokens before them."""
        return self.of(to_predictor(x, fill))

    def gathered(self, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each piece the keys and values of whole rows up to its end.

        Args:
            key, value: (B, Hk, S / N, D) of this process.

        Returns:
            Pairs of (B, Hk, stop, D), with gradients. Under autocast in its dtype.
        """
        dtype = autocast_dtype(key) or key.dtype
        stops = [piece.stop for piece in self.pieces]
        found = _Gathered.apply(key.to(dtype), value.to(dtype), self.group, stops)
        return [both.chunk(2, dim=1) for both in found]

    def gathered_rows(self, parts: Sequence[Tensor]) -> tuple[Tensor]:
        """(N R, C), those of all processes rank by rank, with gradients, of parts with R rows."""
        return (_GatheredRows.apply(torch.cat(list(parts)), self.group),)

    def _piece(self, place: int) -> Piece:
        """Documents that end before a piece have keys and no queries, those behind it neither.

        A document's last query must sit at its last key: both end where it does, or at `stop`.
        """
        step = self.length // (2 * self.size)
        start, stop = place * step, (place + 1) * step
        ends = self.cu_seq_lens.long()
        row, at = ends // self.length, ends % self.length
        queries = row * step + (at - start).clamp(0, step)
        keys = row * stop + at.clamp(max=stop)
        return Piece(start, stop, queries.int(), keys.int())


def split_batch(batch: Mapping[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """The part of a batch that this process computes, as arguments of a patched model's forward.

    Every process of the group has the whole batch, and of its model the same weights (or shards of
    them). The losses of the processes then add up to that of the batch, the sum over its labels by
    `num_items_in_batch`, and their gradients to its gradient:

        loss = model(**lrk.split_batch(batch, group)).loss

    DDP and FSDP average gradients over all P processes instead: there `P * loss` goes backward, and
    `num_items_in_batch` counts the labels of all batches of the step, each once. (With bf16 FSDP2
    also rounds what it is given, weights of tokens too, unless its `MixedPrecisionPolicy` has
    `cast_forward_inputs=False`.)

    Args:
        batch: a `lrk.recipe.Batch` on the device of the model:

            - `input_ids`, `position_ids`, `labels`: (B, S) integers, S a multiple of 2 N.
            - `cu_seq_lens_q`: (N + 1,) integers, ends of documents among the B * S tokens.
            - `shift_labels`: (B, S), if given, in the place of `labels` moved to the token before.
            - `token_weight`: (B, S), if given, in the places of `labels` (of `shift_labels`, where
              they are given); or a function as the model takes it, which is given the losses of
              this process's part in the places of `shift_labels`.
            - `num_items_in_batch`, by default how many labels the batch has.
            - Other numbers, such as `attention_temperature`, are handed through.

        group: N processes, which all call this with the same batch.

    Returns:
        `input_ids`, `position_ids`, `labels`, `shift_labels` and `token_weight`, (B, S / N),
        `num_items_in_batch`, and `sequence_split`, which says where the tokens lie. The model's
        attention must be lrk's own, and of a model with experts its loss too, which counts the
        balance of all tokens once.

    Raises:
        ValueError: for what is missing, for rows that cannot be cut so, and for tensors of which it
            is not known how to split them, such as an `attention_mask`.
    """
    missing = [name for name in (*_OF_TOKENS, "cu_seq_lens_q") if batch.get(name) is None]
    if missing:
        raise ValueError(f"batch has no {', '.join(missing)}, by which it would be split")
    for name in _OF_TOKENS[1:]:
        if batch[name].shape != batch["input_ids"].shape:
            raise ValueError(
                f"{name} has shape {tuple(batch[name].shape)}; it must be that of input_ids, "
                f"{tuple(batch['input_ids'].shape)}"
            )
    split = SequenceSplit(group, batch["position_ids"], batch["cu_seq_lens_q"])
    out = {name: split.of(batch[name]) for name in _OF_TOKENS} | {"sequence_split": split}
    shifts = batch.get("shift_labels") is None
    whole = to_predictor(batch["labels"], _IGNORE_INDEX) if shifts else batch["shift_labels"]
    out |= {"shift_labels": split.of(whole), "num_items_in_batch": (whole != _IGNORE_INDEX).sum()}
    weight = batch.get("token_weight")
    if isinstance(weight, Tensor):
        weight = split.of(to_predictor(weight, 0) if shifts else weight)
    if weight is not None:
        out["token_weight"] = weight
    for name in sorted(batch.keys() - {*_OF_TOKENS, *_OF_LABELS, *_OF_DOCUMENTS}):
        if isinstance(batch[name], Tensor) and batch[name].ndim:
            raise ValueError(
                f"{name} is a tensor of shape {tuple(batch[name].shape)}, of which split_batch "
                f"does not know what belongs to which token; it knows {', '.join(_OF_TOKENS)}, "
                f"{', '.join(_OF_LABELS)} and {', '.join(_OF_DOCUMENTS)}"
            )
        out[name] = batch[name]
    return out


def note_whole_positions(position_ids: Tensor, split: SequenceSplit) -> None:
    """Let `whole_positions` find those of the whole rows, by the tensor that models hand on."""
    setattr(position_ids, _WHOLE, split.position_ids)


def whole_positions(position_ids: Tensor) -> Tensor:
    """(B, S) of the whole rows, where `position_ids` are those of a part."""
    whole: Tensor = getattr(position_ids, _WHOLE, position_ids)
    return whole


def _place_of(piece: int, size: int) -> int:
    """Where a piece lies among those of all processes in the order of ranks, two each."""
    return 2 * piece if piece < size else 2 * (2 * size - 1 - piece) + 1


class _Gathered(torch.autograd.Function):
    """One collective for keys and values in each direction; nothing is saved."""

    @staticmethod
    def forward(
        ctx: Any, key: Tensor, value: Tensor, group: dist.ProcessGroup, stops: list[int]
    ) -> tuple[Tensor, ...]:
        """(B, 2 Hk, stop, D) each, keys first, views of one tensor with tokens outermost."""
        size = dist.get_world_size(group)
        ctx.group, ctx.step = group, key.shape[2] // 2
        own = torch.cat([x.permute(2, 0, 1, 3) for x in (key, value)], dim=2).contiguous()
        of_ranks = own.new_empty(size * own.shape[0], *own.shape[1:])
        _all_gather(of_ranks, own, group=group)
        pieces = of_ranks.chunk(2 * size)
        whole = torch.cat([pieces[_place_of(piece, size)] for piece in range(2 * size)])
        return tuple(whole[:stop].permute(1, 2, 0, 3) for stop in stops)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Each process has a gradient for the keys of all: sums go where their tokens lie."""
        size, step = dist.get_world_size(ctx.group), ctx.step
        batch, heads, _, dim = grads[0].shape
        of_ranks = grads[0].new_zeros(2 * size, step, batch, heads, dim)
        for grad in grads:
            for piece, of_piece in enumerate(grad.permute(2, 0, 1, 3).split(step)):
                of_ranks[_place_of(piece, size)] += of_piece
        own = of_ranks.new_empty(2 * step, batch, heads, dim)
        _reduce_scatter(own, of_ranks.flatten(0, 1), group=ctx.group)
        key, value = own.permute(1, 2, 0, 3).chunk(2, dim=1)
        return key, value, None, None


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        rows = x.new_empty(dist.get_world_size(group) * x.shape[0], *x.shape[1:])
        _all_gather(rows, x.contiguous(), group=group)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_empty(grad.shape[0] // dist.get_world_size(ctx.group), *grad.shape[1:])
        _reduce_scatter(own, grad.contiguous(), group=ctx.group)
        return own, None
